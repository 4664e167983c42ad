"""What faces suffer on their way to the network. A new perturbation is a function and an entry of `PERTURBATIONS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.table import SIDE
from fer_lightning.inference.faces.frame import CropRule, Face, crop

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Perturbation:
    """A change of a face, in several strengths.

    Attributes:
        name: in robustness.csv.
        title: for people, as inside a sentence.
        unit: of the levels, for the axis of a plot.
        apply: maps a face, uint8 (H, W), and a level to the changed face, of the same shape.
        levels: ascending; without the neutral one.
        neutral: the level that leaves the face as it is; None if there is none.
    """

    name: str
    title: str
    unit: str
    apply: Callable[[Pixels, float], Pixels]
    levels: tuple[float, ...]
    neutral: float | None

    @property
    def heading(self) -> str:
        return self.title[0].upper() + self.title[1:]


def crop_scale(face: Pixels, scale: float) -> Pixels:
    """The frame cut out `scale` times as large as it should be, so that above 1 the face is smaller in it."""
    return _cut(face, scale, 0, 0)


def shift_right(face: Pixels, pixels: float) -> Pixels:
    """The frame `pixels` of 48 too far right, so that the face is further left in it."""
    return _cut(face, 1, pixels / SIDE, 0)


def shift_down(face: Pixels, pixels: float) -> Pixels:
    """The frame `pixels` of 48 too low, so that the face is higher in it."""
    return _cut(face, 1, 0, pixels / SIDE)


def rotate(face: Pixels, degrees: float) -> Pixels:
    """The face turned anticlockwise around the middle of the frame."""
    height, width = face.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return _grey(cv2.warpAffine(face, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def brightness(face: Pixels, factor: float) -> Pixels:
    """Pixels times a factor."""
    return _rounded(face * np.float32(factor))


def contrast(face: Pixels, factor: float) -> Pixels:
    """The pixels' differences from the face's mean times a factor."""
    mean = face.mean(dtype=np.float32)
    return _rounded(mean + (face - mean) * np.float32(factor))


def blur(face: Pixels, sigma: float) -> Pixels:
    """A Gaussian filter with a standard deviation in pixels of 48."""
    if sigma == 0:
        return face
    return _grey(cv2.GaussianBlur(face, (0, 0), sigma * face.shape[1] / SIDE, borderType=cv2.BORDER_REPLICATE))


def face_size(face: Pixels, side: float) -> Pixels:
    """The face as a frame of `side` pixels shows it: scaled down and up again, as `predict` scales faces."""
    whole, height = Face(0, 0, face.shape[1], face.shape[0], 1), face.shape[0]
    small = crop(face, whole, CropRule(), round(side))
    return crop(small, Face(0, 0, small.shape[1], small.shape[0], 1), CropRule(), height)


def jpeg(face: Pixels, quality: float) -> Pixels:
    """The face after JPEG compression of a quality from 1 to 100."""
    _, data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    return _grey(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


PERTURBATIONS = (
    Perturbation("crop_scale", "crop scale", "side of the frame ÷ the right one", crop_scale,
                 (0.75, 0.85, 1.1, 1.2, 1.3, 1.5), 1),
    Perturbation("shift_right", "horizontal shift", "frame too far right, pixels of 48", shift_right,
                 (-8, -4, -2, 2, 4, 8), 0),
    Perturbation("shift_down", "vertical shift", "frame too low, pixels of 48", shift_down,
                 (-8, -4, -2, 2, 4, 8), 0),
    Perturbation("rotation", "rotation", "degrees anticlockwise", rotate, (-30, -20, -10, 10, 20, 30), 0),
    Perturbation("brightness", "brightness", "factor", brightness, (0.25, 0.5, 0.75, 1.5, 2), 1),
    Perturbation("contrast", "contrast", "factor", contrast, (0.1, 0.25, 0.5, 1.5, 2), 1),
    Perturbation("blur", "blur", "standard deviation, pixels of 48", blur, (0.5, 1, 1.5, 2, 3), 0),
    Perturbation("face_size", "size of the face", "side in pixels, before scaling to 48", face_size,
                 (12, 16, 20, 24, 32, 40), SIDE),
    Perturbation("jpeg_quality", "JPEG quality", "quality, at 48 pixels", jpeg, (5, 10, 20, 40, 60, 90), None),
)  # fmt: skip
"""In the order in which they are shown."""


def perturbed(faces: Pixels, perturbation: Perturbation, level: float) -> Pixels:
    """Faces, uint8 (N, H, W), after a perturbation."""
    result = np.empty(faces.shape, np.uint8)
    for i, face in enumerate(faces):
        result[i] = perturbation.apply(np.asarray(face), level)
    return result


def _cut(face: Pixels, scale: float, right: float, down: float) -> Pixels:
    """The frame as `predict` would cut it out if a detector were wrong by a scale and by parts of its side."""
    height, width = face.shape
    return crop(face, Face(right * width, down * height, width, height, 1), CropRule(side=scale), height)


def _rounded(values: NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _grey(image: object) -> Pixels:
    """What OpenCV returns."""
    return np.asarray(image, np.uint8)
