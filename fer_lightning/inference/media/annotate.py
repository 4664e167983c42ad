"""Copies of photos and videos with a box and a label for each face."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fer_lightning.errors import UserError, printable
from fer_lightning.inference.media.video import properties, silent_cv2
from fer_lightning.report.files import write_atomically

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

SMALLEST = 240
"""Images whose shorter side has fewer pixels are enlarged by a whole factor, so that the labels can be read."""

LONGEST_SIDE = 4096
"""No image is enlarged beyond this number of pixels."""

_SURE, _UNSURE = "#0072B2", "#6b6b6b"  # blue and grey of report.style, which imports matplotlib
_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
}
_LONGEST = 120  # bytes of a stem; file systems allow names of 255


class Mark(NamedTuple):
    """What is drawn for a face.

    Attributes:
        box: x, y, width, height in pixels.
        text: one line.
        unsure: drawn grey and dashed.
    """

    box: Sequence[float]
    text: str
    unsure: bool


def label_text(label: str, confidence: float, *, unsure: bool) -> str:
    """The text of a mark, for example "happy 87 %" or "unsure: sad 34 %"."""
    text = f"{label} {confidence:.0%}".replace("%", " %")
    return f"unsure: {text}" if unsure else text


def draw(image: NDArray[np.uint8], marks: Sequence[Mark]) -> NDArray[np.uint8]:
    """A copy of an image, uint8 RGB (H, W, 3), with its marks; enlarged by a whole factor if it is small."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image)
    factor = max(min(math.ceil(SMALLEST / min(picture.size)), LONGEST_SIDE // max(picture.size)), 1)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 250))
    for mark in marks:
        x, y, width, height = (value * factor for value in mark.box)
        right, bottom = min(x + width, picture.width - line), min(y + height, picture.height - line)
        corners = (max(x, 0), max(y, 0), max(right, 0), max(bottom, 0))
        if mark.unsure:
            _rectangle(pen, corners, "white", line)
        _rectangle(pen, corners, _UNSURE if mark.unsure else _SURE, line, dashed=mark.unsure)
    plates: list[tuple[float, float, float, float]] = []
    for mark in marks:  # after all boxes, so that none crosses a label
        _label(pen, mark, factor, picture.size, plates)
    return np.array(picture)


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """A file name without suffix for each path, all different (also where case does not count), as near as possible.

    The same paths give the same names. None contains a separator, and none is longer than file systems allow.
    """
    last: dict[str, int] = {}  # number of the last name of each stem
    stems = []
    for path in paths:
        # OpenCV crashes on names that are not UTF-8.
        stem = path.stem.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore").replace("?", "_")
        name, n = stem, last.get(stem.casefold(), 0) + 1
        while n > 1 and (name := f"{stem}-{n}").casefold() in last:
            n += 1
        last |= {stem.casefold(): n, name.casefold(): max(last.get(name.casefold(), 0), 1)}
        stems.append(name)
    return stems


def image_suffix(path: Path) -> str:
    """The suffix of the annotated copy of a photo: its own if that format holds all colours, else .png."""
    suffix = path.suffix.lower()
    if suffix in (".heic", ".heif", ".avif", ".mpo"):
        return ".jpg"
    return suffix if suffix in _FORMATS else ".png"


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image, uint8 RGB (H, W, 3), in the format of the path's suffix, atomically.

    Raises:
        UserError: the file cannot be written, or the format does not allow images of this size.
    """
    from PIL import Image

    try:
        content = BytesIO()
        settings = {"quality": 92} if _FORMATS[path.suffix] in ("JPEG", "WEBP") else {}
        Image.fromarray(image).save(content, _FORMATS[path.suffix], **settings)
        write_atomically(path, content.getvalue())
    except (OSError, ValueError) as error:  # ValueError: more pixels than the format allows
        raise _unwritable(path, getattr(error, "strerror", None) or str(error)) from error


class VideoWriter:
    """Writes an MP4 file without sound, under its name only when it is complete.

    H.264 is used where this build of OpenCV can encode it, else MPEG-4 Part 2, which players show but browsers do not.

    Args:
        path: the file, ending in .mp4.
        rate: frames per second: that of the input, or 1 / `every`; held between 0.1 and 240.

    Raises:
        UserError: on the first frame, if the file cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, min(max(rate, 0.1), 240.0)
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
        self._writer: Any = None
        self._size, self._frames = (0, 0), 0

    def write(self, image: NDArray[np.uint8]) -> None:
        """Add a frame, uint8 RGB (H, W, 3), scaled to the size of the first one."""
        cv2 = silent_cv2()
        if self._writer is None:
            self._size = image.shape[1], image.shape[0]
            self._writer = self._opened()
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if bgr.shape[1::-1] != self._size:
            bgr = cv2.resize(bgr, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(bgr)
        self._frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        try:
            if kind is None and self._writer is not None:
                if not self._is_complete():
                    raise _unwritable(self.path, "the disk may be full")
                self._partial.replace(self.path)
        except OSError as failure:
            raise _unwritable(self.path, str(failure.strerror)) from failure
        finally:
            self._partial.unlink(missing_ok=True)

    def _is_complete(self) -> bool:
        """Whether the file can be opened and has all frames: OpenCV reports no failure to write."""
        try:
            return properties(self._partial).n_frames == self._frames
        except UserError:
            return False

    def _opened(self) -> Any:
        cv2 = silent_cv2()
        for codec in ("avc1", "mp4v"):
            writer = cv2.VideoWriter(
                os.path.abspath(self._partial), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), self.rate, self._size
            )
            if writer.isOpened():
                return writer
        width, height = self._size
        raise _unwritable(self.path, f"OpenCV cannot open it for frames of {width} × {height} pixels")


def _unwritable(path: Path, reason: str) -> UserError:
    return UserError(f"{printable(path)} cannot be written ({reason}); choose another folder with --out")


def _rectangle(
    pen: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], color: str, line: int, *, dashed: bool = False
) -> None:
    left, top, right, bottom = corners
    turns = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for (x, y), (to_x, to_y) in pairwise(turns):
        n = max(3, round((abs(to_x - x) + abs(to_y - y)) / (10 * line))) if dashed else 1
        for i in range(n):
            a, b = i / n, (i + (0.5 if dashed else 1)) / n
            ends = [(x + a * (to_x - x), y + a * (to_y - y)), (x + b * (to_x - x), y + b * (to_y - y))]
            pen.line(ends, color, line)


def _label(
    pen: ImageDraw.ImageDraw,
    mark: Mark,
    factor: int,
    size: tuple[int, int],
    plates: list[tuple[float, float, float, float]],
) -> None:
    """The text on a plate, within the image: above the box, below it, or in it, where it hides no other of `plates`."""
    x, y, width, height = (value * factor for value in mark.box)
    points = round(min(max(min(min(size) / 28, width / 5), 12), 96))
    text = " ".join(mark.text.split())
    font = _font(points)
    while len(text) > 1 and font.getlength(text) > size[0] - points:
        if points > 12:
            points -= 1
            font = _font(points)
        else:
            text = text[:-2] + "…"
    margin = points // 4
    ascent, descent = font.getmetrics()
    plate_width, plate_height = font.getlength(text) + 2 * margin, ascent + descent + margin
    left = min(max(x, 0), size[0] - plate_width)
    tops = [y - plate_height, y + height, y, y + height - plate_height]
    places = [(left, top, left + plate_width, top + plate_height) for top in tops]
    places = [place for place in places if place[1] >= 0 and place[3] <= size[1]]
    places = places or [(left, 0, left + plate_width, plate_height)]
    place = next((place for place in places if not any(_overlap(place, other) for other in plates)), places[0])
    plates.append(place)
    pen.rectangle(place, _UNSURE if mark.unsure else _SURE)
    pen.text((place[0] + margin, place[1] + margin / 2), text, "white", font)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=16)
def _font(points: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Pillow's own font has few letters beyond ASCII."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), points)
