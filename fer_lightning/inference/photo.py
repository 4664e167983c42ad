"""From the file of a photo to the faces in it."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from fer_lightning.data.readers.images import FORMATS, decode
from fer_lightning.data.table import SIDE
from fer_lightning.errors import UserError, printable
from fer_lightning.inference.faces.detector import Detector
from fer_lightning.inference.faces.find import Found, find
from fer_lightning.inference.faces.frame import SMALL, CropRule, Face
from fer_lightning.inference.media.images import is_preview, read_image, several


def find_in_file(path: Path, detector: Detector, rules: Mapping[str, CropRule], size: int) -> Found:
    """The faces in a photo; for the other arguments see `fer_lightning.inference.faces.find.find`.

    Raises:
        UserError: the photo cannot be read.
    """
    if detector.name == "none" and size == SIDE and (whole := _as_in_training(path)):
        return whole
    pixels, note = read_image(path)
    return find(pixels, detector, rules, size, note or "")


def _as_in_training(path: Path) -> Found | None:
    """The middle of an image as the reader of training images takes it, which decodes large files at a fraction of
    their size; None for a file that this reader does not read."""
    from PIL import Image

    try:
        content = path.read_bytes()
        face, (width, height) = decode(content, printable(path))
    except (UserError, OSError):
        return None
    with Image.open(BytesIO(content), formats=FORMATS) as image:
        try:
            note = several(image) or ""
        except Exception:  # Pillow raises anything for a file that is cut off at its second frame
            return None
        if is_preview(image):
            return None
    side = min(width, height)
    remarks = ", ".join(filter(None, ["small" if side < SMALL else "", note]))
    return Found([Face((width - side) / 2, (height - side) / 2, side, side, 1.0)], face[None], [remarks], note)
