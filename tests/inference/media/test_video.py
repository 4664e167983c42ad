"""Frames of videos and cameras come with their numbers and times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_lightning.errors import UserError
from fer_lightning.inference.media.inputs import kind
from fer_lightning.inference.media.video import Frame, frames, is_video, properties
from tests.inference.media.videos import header_first, rotate, shown, slow_down, write_video


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.avi", "a.mkv"])
def test_all_frames_in_order(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, codec="mp4v" if name in ("a.mp4", "a.mov") else "MJPG")
    read = list(frames(path))
    assert [frame.number for frame in read] == list(range(30)) == [shown(frame.image) for frame in read]
    assert [frame.seconds for frame in read] == pytest.approx(np.arange(30) / 10)
    assert read[0].image.shape == (48, 64, 3) and read[0].image.dtype == np.uint8
    red, green, blue = read[9].image[4, 4]
    assert red > 200 and green < 60 and blue < 60
    assert properties(path) == (30, 10.0)


def test_threads_open_videos_with_the_same_options(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mp4" for i in range(40)]
    for path in paths:
        path.write_bytes(b"no video")
    is_video(paths[0])
    before = dict(os.environ)
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(is_video, paths))
    assert dict(os.environ) == before


@pytest.mark.parametrize("every", [0.05, 0.1, 0.2, 0.25, 0.3, 1.0, 7.0])
def test_every_takes_the_first_frame_at_or_after_each_multiple(tmp_path: Path, every: float) -> None:
    path = write_video(tmp_path / "a.mp4")
    times = np.arange(30) / 10
    multiples = [k * every for k in range(100) if k * every <= times[-1] + 1e-9]
    expected = sorted({int(np.argmax(times >= multiple - 1e-9)) for multiple in multiples})
    read = list(frames(path, every=every))
    assert [frame.number for frame in read] == expected == [shown(frame.image) for frame in read]


def test_variable_frame_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    slow_down(path, first=10)
    times = [*np.arange(11) / 10, *(1 + 0.2 * np.arange(1, 20))]
    read = list(frames(path))
    assert [frame.seconds for frame in read] == pytest.approx(times)
    assert [frame.number for frame in frames(path, every=1.0)] == [0, 10, 15, 20, 25]


@pytest.mark.parametrize("start", [0, 1, 7, 29, 30, 99])
@pytest.mark.parametrize("every", [None, 0.25])
def test_frames_from_start_are_those_of_an_uninterrupted_read(tmp_path: Path, start: int, every: float | None) -> None:
    path = write_video(tmp_path / "a.mp4")
    expected = [frame for frame in frames(path, every=every) if frame.number >= start]
    for frame, again in zip(expected, frames(path, every=every, start=start), strict=True):
        assert frame[:2] == again[:2]
        np.testing.assert_array_equal(frame.image, again.image)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    path = write_video(tmp_path / "a.mp4", 3)
    before = next(frames(path)).image
    rotate(path, degrees)
    after = next(frames(path)).image
    np.testing.assert_array_equal(after, np.rot90(before, -degrees // 90))


def test_frames_without_time_stamps(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.mkv"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for i in range(5):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    jpegs = b"".join(cv2.imencode(".jpg", np.full((48, 64, 3), 40 * i, np.uint8))[1].tobytes() for i in range(5))
    (tmp_path / "a.mjpeg").write_bytes(jpegs)
    for name in ("a.mkv", "a.mjpeg"):
        read = list(frames(tmp_path / name))
        assert [frame.seconds for frame in read] == pytest.approx(np.arange(5) / 25)
        assert [round(float(frame.image.mean()) / 40) for frame in read] == list(range(5))
    assert properties(tmp_path / "a.mjpeg") == (None, 25.0)


ODD = [b"caf\xe9.mp4", "Bücher ☺.mp4".encode(), b"a\nb.mp4", b"b%03d.mp4", b"12:30.mp4", b"-i.mp4"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names(tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    write_video(tmp_path / "a.mp4", 3).rename(path)
    assert [frame.number for frame in frames(path)] == [0, 1, 2]


# ---------------------------------------------------------------- bad files


def refused(frames: Iterator[Frame], *parts: str) -> int:
    """The number of frames before the error."""
    read = []
    with pytest.raises(UserError) as error:
        read.extend(frame.number for frame in frames)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message
    return len(read)


@pytest.mark.parametrize("filler", [b"\0", b"\xa7"])
def test_an_mp4_that_is_damaged_in_the_middle_is_reported(tmp_path: Path, filler: bytes) -> None:
    """As an interrupted download into a file of the right size."""
    path = write_video(tmp_path / "a.mp4", 60)
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    middle = (start + end) // 2
    data[middle:end] = filler * (end - middle)
    path.write_bytes(data)
    assert 10 < refused(frames(path), "a.mp4 is truncated or damaged: nothing can be read after frame") < 55


def test_bytes_after_a_video_are_not_a_part_of_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes() + bytes(range(128, 256)) * 8)  # such as the trailer of a camera
    assert len(list(frames(path))) == 30


def test_truncated_videos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, codec in (("a.avi", "MJPG"), ("a.mkv", "MJPG"), ("a.mp4", "mp4v")):
        path = write_video(tmp_path / name, codec=codec)
        if codec == "mp4v":
            header_first(path)
            assert len(list(frames(path))) == 30
        path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
        assert 3 < refused(frames(path), name, "truncated or damaged", "after frame") < 29
        assert refused(frames(path, every=1.0), name, "truncated or damaged") in (1, 2, 3)
    path = write_video(tmp_path / "b.mp4")
    path.write_bytes(path.read_bytes()[:2000])
    assert refused(frames(path), "b.mp4", "is truncated") == 0
    assert capfd.readouterr() == ("", "")


def test_no_videos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, data, message in (
        ("text.mp4", b"hello\n" * 500, "not a video"),
        ("text.txt", b"hello\n" * 500, "not a video"),  # FFmpeg would show the text as a film
        ("empty.mp4", b"", "is empty"),
        ("zeros.avi", bytes(5000), "not a video"),
        ("list.mp4", b"ffconcat version 1.0\nfile good.mp4\n", "not a video"),
    ):
        write_video(tmp_path / "good.mp4", 3)
        (tmp_path / name).write_bytes(data)
        assert refused(frames(tmp_path / name), name, message) == 0
        assert not is_video(tmp_path / name)
    assert refused(frames(tmp_path / "gone.mp4"), "gone.mp4 cannot be read (No such file") == 0
    assert refused(frames(tmp_path), "cannot be read") == 0
    assert capfd.readouterr() == ("", "")


def test_playlist_is_not_followed(tmp_path: Path) -> None:
    """A file from a stranger must not make this machine fetch an address."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.ts"
        for name in ("a.m3u8", "a.mp4"):
            (tmp_path / name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{url}\n#EXT-X-ENDLIST\n")
            refused(frames(tmp_path / name), "not a video")
        with pytest.raises(UserError, match="neither an image nor a video"):
            kind(tmp_path / "a.m3u8")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []
    assert "OPENCV_FFMPEG_CAPTURE_OPTIONS" not in os.environ, "programs that use this package may read from servers"


@pytest.mark.parametrize("every", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_interval(tmp_path: Path, every: float) -> None:
    with pytest.raises(ValueError, match="every must be a positive number"):
        frames(tmp_path / "a.mp4", every=every)


# ---------------------------------------------------------------- camera


def test_no_such_camera(capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(frames(97), "camera 97: there is none") == 0
    assert capfd.readouterr() == ("", "")


FAKE_CAMERA = """
import cv2, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
really = cv2.VideoCapture

class Camera:  # stands in for a device: the frames of a file, in real time
    def __init__(self, index):
        assert index == 0
        self.capture = really(sys.argv[1], cv2.CAP_FFMPEG)
    def grab(self):
        time.sleep(0.02)
        return self.capture.grab()
    def __getattr__(self, name):
        return getattr(self.capture, name)

cv2.VideoCapture = Camera
from fer_lightning.errors import UserError
from fer_lightning.inference.media.video import frames
"""


def fake_camera(video: Path, script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FAKE_CAMERA + script, str(video)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_interrupt_ends_the_camera_cleanly(tmp_path: Path) -> None:
    script = """
for frame in frames(0):
    print(frame.number, frame.image.shape, flush=True)
    time.sleep(0.05)  # the frame in work is finished
    print("done", flush=True)
print("end")
"""
    process = fake_camera(write_video(tmp_path / "a.mp4", 300), script)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "") and out.splitlines()[-2:] == ["done", "end"]


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    script = """
for frame in frames(0):
    print("busy", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("stopped")
"""
    process = fake_camera(write_video(tmp_path / "a.mp4", 300), script)
    assert process.stdout is not None and process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_camera_times_and_loss(tmp_path: Path) -> None:
    script = """
read = []
try:
    for frame in frames(0, every=0.1):
        read.append(frame)
except UserError as error:
    print(error)
print(read[0].number, read[0].seconds)
print(all(a.seconds < b.seconds and a.number < b.number for a, b in zip(read, read[1:])))
print(all(int(a.seconds / 0.1) < int(b.seconds / 0.1) for a, b in zip(read, read[1:])), len(read) >= 3)
"""
    out, err = fake_camera(write_video(tmp_path / "a.mp4", 30), script).communicate(timeout=30)
    assert err == ""
    assert out.splitlines() == [
        "camera 0 has stopped sending pictures: check its cable",
        "0 0.0",
        "True",
        "True True",
    ]
