"""Decoding image files: a photo as it is, or a face of 48 by 48 grey pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.table import SIDE
from fer_lightning.errors import UserError, flat

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
"""Number of pixels of the largest image that is decoded."""

# Not all formats of Pillow: some of its readers start other programs (EPS) or are hardly tested.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""The formats that are read, by Pillow's names."""

# Keys of Pillow's metadata that may contain the orientation of an image.
_ORIENTATION = frozenset(("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"))


def decode(data: bytes, where: str) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The face in the image file `data`, uint8 (48, 48), and the width and height of the upright image.

    The image is rotated by its EXIF tag, converted to grey (16 bits scaled to 8, transparent parts white), scaled so
    that the shorter side is 48, and cropped to the middle of the longer side. A grey 48 by 48 image is not changed.

    Args:
        data: a JPEG, PNG, BMP, GIF, WebP, TIFF or PGM/PPM file; of an animation, the first frame is used.
        where: the file, for messages.

    Raises:
        UserError: not an image, a damaged one, or one of more than 64 megapixels.
    """
    from PIL import ImageOps

    too_large = f"{where} has more than {MAX_PIXELS:,} pixels: this is no face, or a decompression bomb; remove it"
    with opened(io.BytesIO(data), where, too_large=too_large) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UserError(too_large)
        size = image.size
        image.draft(None, (4 * SIDE, 4 * SIDE))  # lets a large JPEG be decoded at a fraction of its size
        decoded = image.size
        grey = upright(image, where).convert("L")
        if grey.size != decoded:  # turned by its tag
            size = size[::-1]
        if grey.size != (SIDE, SIDE):
            grey = ImageOps.fit(grey, (SIDE, SIDE))
        return np.asarray(grey), size


@contextmanager
def opened(file: IO[bytes], where: str, *, too_large: str, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """An image file, of which only the header has been read; what Pillow raises within the block becomes a `UserError`.

    Args:
        file: the image file.
        where: the file, for messages.
        too_large: the message for an image that Pillow takes for a decompression bomb.
        formats: the formats to try, by Pillow's names.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=formats) as image:
            yield image
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{where} is not an image in a known format: remove it, or save it as PNG or JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(too_large) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise UserError(f"{where} is a damaged image ({flat(error)}): replace or remove it") from error


def upright(image: Image.Image, where: str) -> Image.Image:
    """Decode an opened image, rotate it by its EXIF tag, and reduce it to 8 bits: mode L or RGB, transparency on white.

    Raises:
        UserError: its pixels are 32-bit floats.
    """
    from PIL import Image, ImageOps

    image.load()
    # Only where there may be a tag: reading it takes as long as decoding.
    if image.format == "TIFF" or not _ORIENTATION.isdisjoint(image.info):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise UserError(f"{where} has pixels of 32-bit floats, whose range is unknown: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip these at 255
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
