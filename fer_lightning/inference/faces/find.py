"""Finding the faces in an image and cutting them out for a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lightning.inference.faces.detector import Detector
from fer_lightning.inference.faces.frame import CropRule, Face, concerns, crop


class Found(NamedTuple):
    """What was found in a photo or frame.

    Attributes:
        faces: in pixels of the upright image.
        crops: uint8 (N, size, size), grey.
        notes: for each face, what speaks against trusting the answer.
        note: on the photo as a whole, for example that it is one frame of an animation; part of each of `notes`.
        error: why the photo could not be read; empty otherwise.
    """

    faces: list[Face]
    crops: NDArray[np.uint8]
    notes: list[str]
    note: str = ""
    error: str = ""


def find(
    image: NDArray[np.uint8], detector: Detector, rules: Mapping[str, CropRule], size: int, note: str = ""
) -> Found:
    """The faces in an image.

    Args:
        image: uint8 RGB (H, W, 3), upright.
        detector: finds the faces.
        rules: how they are cut out, by the name of the detector; its own rule if it is not among them.
        size: height and width of the crops.
        note: on the image.
    """
    faces, rule = detector(image), rules.get(detector.name, detector.rule)
    crops = [crop(image, face, rule, size) for face in faces]
    notes = [", ".join(filter(None, [*concerns(image, face, rule), note])) for face in faces]
    return Found(faces, np.array(crops, dtype=np.uint8).reshape(-1, size, size), notes, note)
