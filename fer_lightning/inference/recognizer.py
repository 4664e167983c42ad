"""From photos and frames of videos to faces and their class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.readers.images import decode
from fer_lightning.data.table import SIDE
from fer_lightning.errors import UserError, printable
from fer_lightning.inference.faces.detector import Detector
from fer_lightning.inference.faces.find import Found, find
from fer_lightning.inference.faces.frame import Face
from fer_lightning.inference.media.annotate import Mark, label_text
from fer_lightning.inference.media.images import read_image
from fer_lightning.inference.media.inputs import kind
from fer_lightning.inference.media.table import Row
from fer_lightning.inference.media.video import Frame
from fer_lightning.inference.predictor import Predictor


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

    def search(self, image: NDArray[np.uint8], detector: Detector, note: str | None = None) -> Found:
        """The faces in an image, uint8 RGB (H, W, 3); the note is added to those of each face."""
        return find(image, detector, self.predictor.crop, self.predictor.size, note)

    def search_photo(self, path: Path) -> Found:
        """The faces in a photo; a photo that cannot be read has an error instead."""
        try:
            if kind(path) == "video":
                raise UserError(f"{printable(path)} is a video")  # its content has changed meanwhile
            if self.detector.name != "none" or self.predictor.size != SIDE:
                pixels, note = read_image(path)
                return self.search(pixels, self.detector, note)
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
        answer = self.predictor.answer(p)
        known: dict[str, Any] = {"label": answer.label, "unsure": answer.unsure, "probabilities": p.tolist()}
        return Row(file, face=number, box=box, note=note, **known, **frame)

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
