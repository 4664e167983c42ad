"""Reading a photo."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.readers.images import FORMATS, MAX_PIXELS, opened, upright
from fer_lightning.errors import UserError, flat, printable

HEADER = 64
"""Number of leading bytes that identify HEIC and AVIF files."""

_SUBFILE_TYPE = 254  # TIFF 6.0, NewSubfileType: 1 for a reduced image, which comes first in DNG and NEF files
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class Photo(NamedTuple):
    """A photo as a viewer shows it.

    Attributes:
        pixels: uint8 RGB (H, W, 3).
        note: what a reader of the results should know, for example that it is one frame of an animation.
    """

    pixels: NDArray[np.uint8]
    note: str | None


def read_image(path: Path) -> Photo:
    """Read a photo: rotated by its EXIF tag, transparent parts white, 16 bits scaled to 8; of several images the first.

    A photo of up to 64 megapixels is read, which takes 0.2 GB as RGB. JPEGs alone can be decoded at half their width
    and height without decoding the rest; so larger ones, up to the 178 megapixels beyond which Pillow suspects a
    decompression bomb, are read at that size, and the note says so. Colours are not converted between profiles.

    Args:
        path: a JPEG, PNG, BMP, GIF, WebP, TIFF, PGM/PPM or AVIF file, or a HEIC file if pillow-heif is installed.

    Raises:
        UserError: missing, not an image, damaged, too large, or a format that needs another package.
    """
    where = printable(path)
    too_large = f"{where} has more than {MAX_PIXELS:,} pixels (a JPEG may have 178,000,000): save a smaller copy"
    try:
        with path.open("rb") as file:
            header = file.read(HEADER)
            file.seek(0)
            if not header:
                raise UserError(f"{where} is empty: replace or remove it")
            formats = (*FORMATS, *_more_formats(header, where))
            with opened(file, where, too_large=too_large, formats=formats) as image:
                notes = [] if (note := several(image)) is None else [note]
                size = image.size
                if image.width * image.height > MAX_PIXELS:
                    image.draft(None, (image.width // 2, image.height // 2))
                    notes.append(f"{size[0]} × {size[1]} pixels, read and measured at half that width and height")
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(too_large)
                if is_preview(image):
                    raise UserError(f"{where}: only a preview of this camera's format can be read: save it as JPEG")
                rgb = upright(image, where).convert("RGB")
                return Photo(np.asarray(rgb), "; ".join(notes) or None)
    except IsADirectoryError as error:
        raise UserError(f"{where} is a folder that cannot be listed") from error
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror or flat(error)})") from error


def is_image(path: Path) -> bool:
    """Whether the content of a file is that of an image, which may be damaged or too large.

    Raises:
        OSError: the file cannot be read.
    """
    from PIL import Image

    with path.open("rb") as file:
        if _is_avif(header := file.read(HEADER)) or _is_heic(header):
            return True
        file.seek(0)
        try:
            with Image.open(file, formats=FORMATS):
                return True
        except Image.DecompressionBombError:
            return True
        except Exception:  # Pillow's readers raise nearly anything on damaged data
            return False


@contextmanager
def without_remarks() -> Iterator[None]:
    """Ignore what Pillow warns of: odd metadata, large images. Warnings of all threads are concerned, so it is entered
    around the threads that read photos and not in them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("ignore", "Unknown feature")  # AVIF, in older versions
        yield


def is_preview(image: Any) -> bool:
    """Whether a file is of a camera's raw format, of which Pillow reads a preview only."""
    return bool(image.format == "TIFF" and image.tag_v2.get(_SUBFILE_TYPE) == 1)


def several(image: object) -> str | None:
    """A note for a file of several images; the preview images in the JPEGs of some cameras do not count."""
    form = getattr(image, "format", None)
    if form in ("MPO", "HEIF") or not getattr(image, "is_animated", False):
        return None
    return "first page only" if form == "TIFF" else "animation: first frame only"


def _is_avif(header: bytes) -> bool:
    return header[4:8] == b"ftyp" and b"avif" in header[8:]


def _is_heic(header: bytes) -> bool:
    return header[4:8] == b"ftyp" and header[8:12] in _HEIC


def _more_formats(header: bytes, where: str) -> tuple[str, ...]:
    """The formats that a version of Pillow or a plug-in may lack, if the file is of one of them."""
    from PIL import features

    if _is_avif(header):
        if not features.check("avif"):
            raise UserError(f"{where} is an AVIF image: install Pillow 11.3 or newer to read it, or save it as JPEG")
        return ("AVIF",)
    if _is_heic(header):
        try:
            import_module("pillow_heif").register_heif_opener()
        except ImportError:
            raise UserError(
                f"{where} is a HEIC photo: pip install pillow-heif to read it, or save it as JPEG"
            ) from None
        return ("HEIF",)
    return ()
