"""Drawn faces that detectors find, at known places."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def drawn_face(side: int) -> NDArray[np.uint8]:
    """A face about `side` pixels high in the middle of a square of twice that, uint8 RGB."""
    image = np.full((2 * side, 2 * side), 150, np.uint8)

    def ellipse(x: float, y: float, width: float, height: float, value: int) -> None:
        centre, axes = (round(side * (1 + x)), round(side * (1 + y))), (round(width * side), round(height * side))
        cv2.ellipse(image, centre, axes, 0, 0, 360, value, -1)

    ellipse(0, -0.05, 0.42, 0.58, 60)  # hair
    ellipse(0, 0.05, 0.36, 0.5, 205)
    for eye in (-0.16, 0.16):
        ellipse(eye, -0.14, 0.12, 0.03, 70)
        ellipse(eye, -0.05, 0.1, 0.05, 90)
        ellipse(eye, -0.05, 0.04, 0.04, 20)
        ellipse(1.25 * eye, 0.14, 0.09, 0.08, 225)
    ellipse(0, 0, 0.04, 0.16, 230)  # nose
    ellipse(0, 0.16, 0.07, 0.025, 140)
    ellipse(0, 0.31, 0.15, 0.04, 110)  # mouth
    return cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), side / 40), cv2.COLOR_GRAY2RGB)


def photo(height: int, width: int, *faces: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A grey photo with drawn faces, each given by the x and y of its centre and its side."""
    image = np.full((height, width, 3), 150, np.uint8)
    for x, y, side in faces:
        image[y - side : y + side, x - side : x + side] = drawn_face(side)
    return image
