"""Annotated copies show box and label, and leave the originals alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.inference.media.annotate import (
    Mark,
    VideoWriter,
    draw,
    image_suffix,
    label_text,
    unique_stems,
    write_image,
)
from fer_lightning.inference.media.images import read_image
from fer_lightning.inference.media.video import frames, properties

MARK = Mark((200, 150, 100, 120), "happy 87 %", False)


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


def test_texts() -> None:
    assert label_text("happy", 0.871, unsure=False) == "happy 87 %"
    assert label_text("sad", 0.34, unsure=True) == "unsure: sad 34 %"


def test_box_and_label_are_drawn_on_a_copy() -> None:
    image = grey(640, 480)
    drawn = draw(image, [MARK])
    assert (image == 200).all() and drawn.shape == image.shape
    changed = (drawn != 200).any(axis=2)
    assert changed[150:270, 200].all() and changed[150, 200:300].all() and changed[269:272, 200:300].any(axis=0).all()
    assert not changed[160:260, 210:290].any(), "the face itself stays visible"
    assert changed[120:150, 200:260].mean() > 0.5, "the label is above the box"
    unsure = draw(image, [MARK._replace(unsure=True)])
    side = unsure[155:265, 200]
    assert (
        0.3 < (side == 255).all(axis=1).mean() < 0.7 and (np.ptp(side.astype(int), axis=1) == 0).all()
    )  # dashed, grey


@pytest.mark.parametrize("size", [(3000, 1), (1, 5000)])
def test_strips_are_not_enlarged_beyond_reason(size: tuple[int, int]) -> None:
    drawn = draw(grey(*size), [Mark((0, 0, 1, 1), "happy 87 %", False)])
    assert drawn.shape[:2] == size[::-1]


@pytest.mark.parametrize("size", [(48, 48), (30, 400), (640, 480), (1600, 1200), (3, 3), (1, 1)])
@pytest.mark.parametrize("text", ["happy 87 %", "überrascht 99 %", "a very long class name that does not fit in 12 %"])
def test_labels_fit_any_image(size: tuple[int, int], text: str) -> None:
    image = grey(*size)
    for box in ((0, 0, *size), (size[0] - 2, size[1] - 2, 2, 2), (-5, -5, size[0] + 10, size[1] + 10)):
        drawn = draw(image, [Mark(box, text, False)])
        assert drawn.shape[0] % size[1] == 0 and min(drawn.shape[:2]) >= 240
        assert drawn.shape[0] // size[1] == drawn.shape[1] // size[0]
        assert (drawn.min(axis=2) > 225).sum() > 20, "the text can be seen"


def test_letters_beyond_ascii_have_shapes_of_their_own() -> None:
    """A font without them would show the same box for each."""
    shapes = [draw(grey(300, 300), [Mark((50, 100, 200, 150), letter * 5, False)]).tobytes() for letter in "éßЖΩščø"]
    assert len(set(shapes)) == len(shapes)


def test_labels_of_a_group_hide_no_other() -> None:
    """Unless more faces than labels have room: then the first places are taken."""
    faces = [Mark((300 + 50 * i, 200, 48, 60), "surprise 100 %", False) for i in range(3)]
    together = (draw(grey(640, 480), faces) == 255).sum()
    assert together == sum((draw(grey(640, 480), [face]) == 255).sum() for face in faces)
    draw(grey(640, 480), faces * 20)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.PNG", "a.bmp", "a.webp", "a.tiff", "a.ppm", "a.gif", "a.heic", "a", "a.pgm"]
)
def test_copy_has_the_format_of_the_original_where_possible(tmp_path: Path, name: str) -> None:
    suffix = image_suffix(Path(name))
    kept = {".jpg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".tiff": "TIFF", ".ppm": "PPM"}
    own = Path(name).suffix.lower()
    assert suffix == (own if own in kept else ".jpg" if own == ".heic" else ".png")
    image = draw(grey(320, 240), [MARK._replace(box=(50, 60, 90, 90))])
    write_image(tmp_path / f"copy{suffix}", image)
    with Image.open(tmp_path / f"copy{suffix}") as copy:
        assert copy.format == kept[suffix]
        assert np.abs(np.asarray(copy.convert("RGB")).astype(int) - image).mean() < 3


def test_rotated_photo_is_written_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg", exif=exif)
    original = (tmp_path / "a.jpg").read_bytes()
    write_image(tmp_path / "copy.jpg", draw(read_image(tmp_path / "a.jpg").pixels, []))
    with Image.open(tmp_path / "copy.jpg") as copy:
        assert copy.size == (300, 400) and 0x0112 not in copy.getexif()
    assert (tmp_path / "a.jpg").read_bytes() == original


def test_unwritable_copy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.png cannot be written .*--out"):
        write_image(tmp_path / "file" / "a.png", grey(9, 9))
    with (
        pytest.raises(UserError, match=r"a\.mp4 cannot be written .*--out"),
        VideoWriter(tmp_path / "gone" / "a.mp4", 25) as writer,
    ):
        writer.write(grey(64, 48))


def test_names_are_unique_and_stay_in_the_folder() -> None:
    names = ["a/x.jpg", "b/x.jpg", "b/X.png", "x-2.jpg", "../../x.mp4", "/etc/x", "y\ud8ff?.jpg", "a/..jpg", "..."]
    names += ["é" * 120 + ".jpg", "c/" + "z" * 250, "d/" + "z" * 250]
    stems = unique_stems([Path(name) for name in names])
    assert stems[:4] == ["x", "x-2", "X-3", "x-2-2"]
    assert len({stem.casefold() for stem in stems}) == len(stems) == len(names)
    for stem in stems:
        assert Path("out", stem + ".png").parent == Path("out") and len((stem + ".partial.png").encode()) < 200
    assert stems == unique_stems([Path(name) for name in names])


# ---------------------------------------------------------------- video


def test_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 5) as writer:
        for i in range(10):
            writer.write(np.full((49, 65, 3), (20 * i, 0, 0), np.uint8))
        assert not path.exists()
    assert properties(path) == (10, 5.0)
    read = list(frames(path))
    assert [round(float(frame.image[..., 0].mean()) / 20) for frame in read] == list(range(10))
    assert abs(read[0].image.shape[0] - 49) <= 1 and [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_that_fills_the_disk_is_reported(tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk's, which OpenCV does not report either."""
    script = f"""
import resource
import numpy as np
from pathlib import Path
from fer_lightning.errors import UserError
from fer_lightning.inference.media.annotate import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
rng = np.random.default_rng(0)
try:
    with VideoWriter(Path("{tmp_path}/full.mp4"), 25.0) as video:
        for _ in range(60):
            video.write(rng.integers(0, 256, (240, 320, 3), np.uint8))
except UserError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "full.mp4" in ended.stdout and "the disk may be full" in ended.stdout, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupted_video_leaves_no_file(tmp_path: Path) -> None:
    def interrupted(writer: VideoWriter) -> None:
        writer.write(grey(64, 48))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 29.97) as writer:
        interrupted(writer)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_other_sizes_are_scaled(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 1000) as writer:
        for size in ((64, 48), (32, 24), (48, 64)):
            writer.write(grey(*size))
    assert {frame.image.shape for frame in frames(tmp_path / "a.mp4")} == {(48, 64, 3)}


def test_image_too_large_for_its_format_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*wide\.webp cannot be written"):
        write_image(tmp_path / "wide.webp", grey(17000, 2))


def test_names_of_many_equal_stems_are_found_at_once() -> None:
    names = unique_stems([Path(str(i), "0001.jpg") for i in range(20_000)])
    assert len({name.casefold() for name in names}) == 20_000
    assert unique_stems([Path("a-2"), Path("a"), Path("A"), Path("a-2")]) == ["a-2", "a", "A-3", "a-2-2"]
