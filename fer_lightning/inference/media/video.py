"""Reading frames with their times from a video file or a camera."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lightning.errors import UserError, printable

if TYPE_CHECKING:
    from cv2 import VideoCapture

# FFmpeg would also take a text file for a video, and follow a playlist to other files and servers.
_DEMUXERS = "mov,matroska,webm,avi,mjpeg,mpeg,mpegts,mpegvideo,m4v,flv,asf,ogg,dv,ivf,h264,hevc"
_SAFE = f"protocol_whitelist;file|format_whitelist;{_DEMUXERS}"
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: counted from 0 over all frames, those that were skipped included.
        seconds: from the first frame: the time stamp of a file, the time of arrival from a camera.
        image: uint8 RGB (H, W, 3), rotated as the file asks.
    """

    number: int
    seconds: float
    image: NDArray[np.uint8]


class Properties(NamedTuple):
    """The properties in the header of a video.

    Attributes:
        n_frames: number of frames, an estimate in some formats; None if it is not known.
        rate: mean number of frames per second; 25 if it is not known.
    """

    n_frames: int | None
    rate: float


def frames(source: Path | int, *, every: float | None = None, start: int = 0) -> Iterator[Frame]:
    """The frames of a video file or of a camera, in order.

    Close the generator, or read it to its end, to release the file or camera. While a camera is read in the main
    thread, Ctrl-C ends the frames, so that the caller can finish; a second Ctrl-C interrupts.

    Args:
        source: a file, or the index of a camera.
        every: seconds; of the frames at or after each multiple of it, only the first is returned. None for all frames.
        start: number of the first frame; those before it are decoded and dropped, since seeking by number is inexact
            in many files. The frames are those that would have followed in a call without `start`.

    Raises:
        UserError: on the first frame, if the source cannot be opened; after the last one, if the file is damaged or
            truncated or the camera stopped.
        ValueError: `every` is not a positive number.
    """
    if every is not None and not (every > 0 and math.isfinite(every)):
        raise ValueError(f"every must be a positive number of seconds, not {every}")
    if isinstance(source, int):
        return _camera_frames(source, every)
    return _file_frames(source, every, start)


def properties(path: Path) -> Properties:
    """Frame count and rate from the header of a video file; raises UserError as `frames` does."""
    with _open(path) as capture:
        return _properties(capture)


def is_video(path: Path) -> bool:
    """Whether the file can be opened as a video."""
    try:
        with _open(path):
            return True
    except UserError:
        return False


def _file_frames(path: Path, every: float | None, start: int) -> Iterator[Frame]:
    with _open(path) as capture:
        cv2, where = silent_cv2(), printable(path)
        header = _properties(capture)
        number, first, seconds, step = 0, 0.0, 0.0, -1
        while capture.grab():
            stamp = capture.get(cv2.CAP_PROP_POS_MSEC)
            first = first if number else stamp
            stamp = (stamp - first) / 1000
            # Some files have no time stamps, or have them out of order.
            seconds = stamp if number == 0 or stamp > seconds else seconds + 1 / header.rate
            latest, step = step, max(step, _step(seconds, every))
            if number >= start and (every is None or step > latest):
                decoded, image = capture.retrieve()
                if not decoded:
                    break
                yield Frame(number, seconds, _rgb(image))
            number += 1
        if not number:
            raise UserError(
                f"{where}: no frame can be decoded: it is damaged, or its codec unknown; convert or remove it"
            )
        if _ends_early(path, header, number, seconds):
            raise UserError(
                f"{where} is truncated or damaged: nothing can be read after frame {number - 1}, {seconds:.1f} s; "
                "what comes before is kept"
            )


def _camera_frames(index: int, every: float | None) -> Iterator[Frame]:
    cv2 = silent_cv2()
    capture = cv2.VideoCapture(index)
    try:
        if not capture.isOpened():
            raise UserError(f"camera {index}: there is none, or another program uses it; --camera 0 is the first one")
        with _interruptible() as interrupted:
            number, step, began = 0, -1, 0.0
            while not interrupted.is_set():
                if not capture.grab():
                    if interrupted.is_set():  # the signal also ends the wait for the camera
                        break
                    raise UserError(f"camera {index} has stopped sending pictures: check its cable")
                now = time.monotonic()
                began = began if number else now
                seconds = now - began
                latest, step = step, _step(seconds, every)
                if every is None or step > latest:
                    decoded, image = capture.retrieve()
                    if decoded:
                        yield Frame(number, seconds, _rgb(image))
                number += 1
    finally:
        capture.release()


def _step(seconds: float, every: float | None) -> int:
    """Number of multiples of `every` up to `seconds`; a microsecond allows for rounded time stamps."""
    return 0 if every is None else math.floor((seconds + 1e-6) / every)


def _rgb(image: Any) -> NDArray[np.uint8]:
    rgb: NDArray[np.uint8] = silent_cv2().cvtColor(image, silent_cv2().COLOR_BGR2RGB)
    return rgb


def silent_cv2() -> ModuleType:
    """OpenCV with its messages, and FFmpeg's, switched off: ours say the same in one line.

    FFmpeg is silent only if nothing else has read or written a video in this process before.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # moved between 4.10 and 4.14
    set_level(0)
    return cv2


_OPENING = threading.Lock()
"""Held while the environment has the options of one call: threads open videos side by side."""


@contextmanager
def _open(path: Path) -> Iterator[VideoCapture]:
    where, cv2 = printable(path), silent_cv2()
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{where} is empty: replace or remove it")
            name = os.path.abspath(path)  # FFmpeg takes what stands before a colon for a protocol, except after a slash
            try:
                name.encode()
            except UnicodeEncodeError:  # OpenCV crashes
                name = f"/dev/fd/{file.fileno()}"
            with _OPENING, _options(_SAFE):
                capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
            try:
                if not capture.isOpened():
                    raise UserError(f"{where} is not a video in a known format, or is truncated: replace or remove it")
                yield capture
            finally:
                capture.release()
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}): replace or remove it") from error


@contextmanager
def _options(more: str) -> Iterator[None]:
    """Add to the options with which OpenCV opens videos, which it reads from the environment, during the block."""
    given = os.environ.get(_OPTIONS)
    os.environ[_OPTIONS] = more if given is None else f"{given}|{more}"
    try:
        yield
    finally:
        if given is None:
            del os.environ[_OPTIONS]
        else:
            os.environ[_OPTIONS] = given


def _properties(capture: VideoCapture) -> Properties:
    cv2 = silent_cv2()
    count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    return Properties(int(count) if count > 0 else None, rate if math.isfinite(rate) and rate > 0 else 25.0)


def _ends_early(path: Path, header: Properties, read: int, seconds: float) -> bool:
    """Whether a file is shorter than its header states: OpenCV ends the frames of a truncated file without an error."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if file.read(8)[4:] == b"ftyp":  # MP4, MOV
            if any(box.end > size for box in _boxes(file, 0, size)):
                return True
            duration = _shown_for(file, size)  # an edit list may hide frames that the header counts
        else:
            duration = None if header.n_frames is None else header.n_frames / header.rate
    if header.n_frames is None or duration is None:
        return False
    # Counts that are estimates may be wrong by a few frames, and by many in a file of variable frame rate, whose
    # duration is right.
    return header.n_frames - read > max(3, 0.02 * header.n_frames) and duration - seconds > 0.5


class _Box(NamedTuple):
    """A box of an MP4 or MOV file (ISO/IEC 14496-12, 4.2): its type, and where its content starts and ends."""

    kind: bytes
    start: int
    end: int


def _boxes(file: IO[bytes], position: int, end: int) -> Iterator[_Box]:
    """The boxes between two positions, of which the last may exceed the second; none after what is no box."""
    while position < end:
        file.seek(position)
        header = file.read(16)
        kind, length, start = header[4:8], int.from_bytes(header[:4], "big"), position + 8
        if length == 1:
            length, start = int.from_bytes(header[8:], "big"), position + 16
        if length < 8 or not (kind.isascii() and kind.decode("ascii").isprintable()):  # 0: up to the end of the file
            return
        position += length
        yield _Box(kind, start, position)


def _shown_for(file: IO[bytes], size: int) -> float | None:
    """Seconds for which the video track of an MP4 or MOV file is shown (8.2.2, 8.3.2); None if they are not stated."""

    def inside(box: _Box, kind: bytes) -> Iterator[_Box]:
        return (one for one in _boxes(file, box.start, box.end) if one.kind == kind)

    scale = 0

    def numbers(box: _Box) -> tuple[int, Callable[[int, int], int]]:
        """The version of a box, and a reader of its numbers by their position and length."""
        file.seek(box.start)
        content = file.read(min(box.end - box.start, 64))
        return content[0] if content else 0, lambda at, length: int.from_bytes(content[at : at + length], "big")

    for movie in (box for box in _boxes(file, 0, size) if box.kind == b"moov"):
        for header in inside(movie, b"mvhd"):
            version, number = numbers(header)
            scale = number(20 if version else 12, 4)
        for track in inside(movie, b"trak"):
            kinds = [numbers(box)[1](8, 4) for media in inside(track, b"mdia") for box in inside(media, b"hdlr")]
            if int.from_bytes(b"vide", "big") not in kinds:
                continue
            for header in inside(track, b"tkhd"):
                version, number = numbers(header)
                at, length = (28, 8) if version else (20, 4)
                ticks = number(at, length)
                return ticks / scale if scale and 0 < ticks < 256**length - 1 else None
    return None


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as usual. Does nothing outside the main thread."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, stop) or signal.SIG_DFL
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
