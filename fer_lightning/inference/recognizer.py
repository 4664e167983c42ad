"""From photos and frames of videos to faces and their class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.errors import UserError, printable
from fer_lightning.inference.faces.detector import Detector
from fer_lightning.inference.faces.find import Found, find
from fer_lightning.inference.faces.frame import Face
from fer_lightning.inference.media.annotate import Mark, label_text
from fer_lightning.inference.media.inputs import kind
from fer_lightning.inference.media.table import Row
from fer_lightning.inference.media.video import Frame
from fer_lightning.inference.photo import find_in_file
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

    def search_photo(self, path: Path) -> Found:
        """The faces in a photo; a photo that cannot be read has an error instead."""
        try:
            if kind(path) == "video":
                raise UserError(f"{printable(path)} is a video")  # its content has changed meanwhile
            return find_in_file(path, self.detector, self.predictor.crop, self.predictor.size)
        except UserError as error:
            return self._nothing(str(error))
        except OSError as error:
            return self._nothing(f"{printable(path)} cannot be read ({error.strerror})")

    def search_frame(self, frame: Frame) -> Found:
        """The faces in a frame of a video."""
        return find(frame.image, self.video_detector, self.predictor.crop, self.predictor.size)

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
        return Found([], np.empty((0, self.predictor.size, self.predictor.size), np.uint8), [], error=error)


def marks(rows: Sequence[Row]) -> list[Mark]:
    """What is drawn for the rows of a photo or frame."""
    return [
        Mark(row.box, label_text(row.label, max(row.probabilities), unsure=row.unsure), row.unsure)
        for row in rows
        if row.box is not None and row.probabilities is not None
    ]
