"""From photos and frames of videos to faces and their class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.readers.images import decode
from fer_lightning.data.table import SIDE
from fer_lightning.errors import UserError, printable
from fer_lightning.inference.faces.detector import Detector
from fer_lightning.inference.faces.frame import CropRule, Face, concerns, crop
from fer_lightning.inference.media.annotate import Mark, label_text
from fer_lightning.inference.media.images import read_image
from fer_lightning.inference.media.inputs import kind
from fer_lightning.inference.media.table import Row
from fer_lightning.inference.media.video import Frame
from fer_lightning.inference.predictor import Predictor


class Found(NamedTuple):
    """What was found in a photo or frame.

    Attributes:
        faces: in pixels of the upright image.
        crops: uint8 (N, size, size), grey.
        notes: for each face, what speaks against trusting the answer.
        error: why the photo could not be read; empty otherwise.
    """

    faces: list[Face]
    crops: NDArray[np.uint8]
    notes: list[str]
    error: str = ""


@dataclass(frozen=True)
class Recognizer:
    """Finds and classifies faces. Threads may share it.

    Attributes:
        predictor: from crops to probabilities.
        detector: for photos.
        video_detector: for frames, one that is faster where there is one.
    """

    predictor: Predictor
    detector: Detector
    video_detector: Detector

    def rule(self, detector: Detector) -> CropRule:
        """How faces are cut out: the model's rule for the detector, or the detector's own."""
        return self.predictor.crop.get(detector.name, detector.rule)

    def search(self, image: NDArray[np.uint8], detector: Detector, note: str = "") -> Found:
        """The faces in an image, uint8 RGB (H, W, 3); the note is added to those of each face."""
        faces, size = detector(image), self.predictor.size
        rule = self.rule(detector)
        crops = [crop(image, face, rule, size) for face in faces]
        notes = [", ".join(filter(None, [*concerns(image, face, rule), note])) for face in faces]
        return Found(faces, np.array(crops, dtype=np.uint8).reshape(-1, size, size), notes)

    def search_photo(self, path: Path) -> Found:
        """The faces in a photo; a photo that cannot be read has an error instead."""
        try:
            if kind(path) == "video":
                raise UserError(f"{printable(path)} is a video")  # its content has changed meanwhile
            if self.detector.name != "none" or self.predictor.size != SIDE:
                pixels, note = read_image(path)
                return self.search(pixels, self.detector, note or "")
            # As the reader of training images, which decodes large files at a fraction of their size.
            face, size = decode(path.read_bytes(), printable(path))
            return Found([_whole(path, *size)], face[None], [""])
        except UserError as error:
            return self._nothing(str(error))
        except OSError as error:
            return self._nothing(f"{printable(path)} cannot be read ({error.strerror})")

    def search_frame(self, frame: Frame) -> Found:
        """The faces in a frame of a video."""
        return self.search(frame.image, self.video_detector)

    def classify(self, found: Sequence[Found]) -> list[NDArray[np.float64]]:
        """The probabilities (N, C) of the faces in each of several photos or frames."""
        probabilities = self.predictor.probabilities(np.concatenate([one.crops for one in found]))
        return np.split(probabilities, np.cumsum([len(one.faces) for one in found])[:-1])

    def row(self, file: str, face: Face, p: NDArray[np.float64], note: str, number: int, **frame: Any) -> Row:
        """The row of a face with its probabilities (C,); `frame` has number and time of a video's frame."""
        box = (face.x, face.y, face.width, face.height)
        label = self.predictor.classes[int(p.argmax())]
        known: dict[str, Any] = {"label": label, "unsure": self.unsure(p), "probabilities": p.tolist(), "note": note}
        return Row(file, face=number, box=box, **known, **frame)

    def unsure(self, p: NDArray[np.float64]) -> bool:
        """Whether probabilities (C,) are too low for the model to be sure."""
        calibration = self.predictor.calibration
        return calibration is not None and bool(p.max() < calibration.threshold)

    def _nothing(self, error: str) -> Found:
        return Found([], np.empty((0, self.predictor.size, self.predictor.size), np.uint8), [], error)


def marks(rows: Sequence[Row]) -> list[Mark]:
    """What is drawn for the rows of a photo or frame."""
    return [
        Mark(row.box, label_text(row.label, max(row.probabilities), unsure=row.unsure), row.unsure)
        for row in rows
        if row.box is not None and row.probabilities is not None
    ]


def _whole(path: Path, width: int, height: int) -> Face:
    """The middle of a photo as a face, from the width and height that its file has before it is rotated by its tag."""
    from PIL import ExifTags, Image

    if width != height:
        with Image.open(path) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) > 4:  # a quarter turn
                width, height = height, width
    side = min(width, height)
    return Face((width - side) / 2, (height - side) / 2, side, side, 1.0)
