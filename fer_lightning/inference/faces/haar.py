"""Haar cascades of OpenCV: P. Viola and M. Jones, Rapid object detection using a boosted cascade, CVPR 2001."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import cv2.data
import numpy as np
from numpy.typing import NDArray

from fer_lightning.errors import UserError, printable
from fer_lightning.inference.faces.detector import Detector, OwnNetwork, scaled
from fer_lightning.inference.faces.frame import Face

LONGER_SIDE = 640
"""Larger images are scaled down to this, in pixels."""

WINDOW = 24
"""Side of the smallest face that the cascade knows, in pixels of the scaled image."""

SMALLEST = 40
"""Side of the smallest face that is searched for, in pixels of the image."""

# On 300 padded images of PrivateTest and eight textures of scikit-image, both at 640 pixels, these find as many faces
# as 1.1 and 8 do (215, 219) and as few other things (13, 9), in 0.6 of the time. With 1.1 and 3 it is 241 and 39.
SCALE_FACTOR, VOTES = 1.2, 4


class Haar(Detector):
    """Faces by a cascade; the score is the number of windows that agree.

    It finds frontal faces of 40 pixels or more; in an image of more than 1,067 pixels, of 1/27 of its longer side or
    more. There are no landmarks.

    Args:
        path: a cascade of OpenCV, .xml; None for its `haarcascade_frontalface_default.xml`.

    Raises:
        UserError: the file is no such cascade.
    """

    name = "haar"

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(cv2.data.haarcascades, "haarcascade_frontalface_default.xml")
        self._own = OwnNetwork(self._load)

    def _load(self) -> cv2.CascadeClassifier:
        try:
            cascade = cv2.CascadeClassifier(str(self.path))
        except (cv2.error, SystemError):
            cascade = cv2.CascadeClassifier()
        if cascade.empty():
            raise UserError(f"{printable(self.path)} is not a cascade of OpenCV: use another file, haar or blaze")
        return cascade

    def _find(self, image: NDArray[np.uint8]) -> Iterable[Face]:
        scale = min(LONGER_SIDE / max(image.shape), 1.0)
        grey = cv2.cvtColor(scaled(image, scale) if scale < 1 else image, cv2.COLOR_RGB2GRAY)
        side = max(WINDOW, round(SMALLEST * scale))
        boxes, votes = self._own.network.detectMultiScale2(
            grey, scaleFactor=SCALE_FACTOR, minNeighbors=VOTES, minSize=(side, side)
        )
        for box, vote in zip(boxes, votes, strict=True):
            x, y, width, height = (float(value) / scale for value in box)
            yield Face(x, y, width, height, float(vote))
