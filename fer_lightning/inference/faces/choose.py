"""Which detector a user means."""

from __future__ import annotations

from pathlib import Path

from fer_lightning.errors import UserError, printable, quoted
from fer_lightning.inference.faces.detector import Detector, WholeImage
from fer_lightning.inference.faces.download import installed
from fer_lightning.inference.zoo import existing

NAMES = ("auto", "blaze", "haar", "none")

HINT = "Faces are searched with a Haar cascade; `fer-lightning download blaze` gets a detector that finds more."


def load_detector(name: str = "auto", *, fast: bool = False) -> tuple[Detector, str | None]:
    """The detector of that name, and a sentence for the user if a better one can be downloaded, otherwise None.

    Args:
        name: "haar"; "blaze"; "auto" for blaze if it has been downloaded, otherwise haar; "none" if each image is a
            face; or a file: a cascade of OpenCV (.xml) or BlazeFace full-range (.tflite).
        fast: let blaze search in one pass, which misses small faces: for video.

    Raises:
        UserError: there is no such detector or file, the file is of another kind, or blaze has not been downloaded.
    """
    if name == "none":
        return WholeImage(), None
    path = Path(name) if name in NAMES else existing(name)
    if path is None or (name not in NAMES and not path.is_file()):
        raise UserError(f"detector {quoted(name)}: no such file; use {', '.join(NAMES)}, or a file (.xml, .tflite)")
    suffix = path.suffix.lower()
    if name not in NAMES and suffix not in (".xml", ".tflite"):
        raise UserError(f"detector {printable(path)}: use a cascade of OpenCV (.xml) or BlazeFace full-range (.tflite)")
    from fer_lightning.inference.faces.blaze import BlazeFace  # here, as OpenCV takes a while to import
    from fer_lightning.inference.faces.haar import Haar

    if suffix == ".tflite":
        return BlazeFace(path, fast=fast), None
    if suffix == ".xml":
        return Haar(path), None
    if name != "haar":
        if file := installed("blaze"):
            return BlazeFace(file, fast=fast), None
        if name == "blaze":
            raise UserError("detector blaze is not there yet: run `fer-lightning download blaze`, or use haar")
    return Haar(), HINT if name == "auto" else None
