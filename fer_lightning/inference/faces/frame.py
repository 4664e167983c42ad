"""From a box around a face to the grey 48 by 48 frame that the networks are trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.table import SIDE

SMALL = 40
"""Side in pixels of the frame below which a face is small: 40 cost a peer 3 points on PrivateTest, 24 cost 11."""

CUT = 0.1
"""Share of the frame beyond the image's edge from which a face is cut: at the chin, 10 % cost 1 point, 20 % cost 18."""

TURNED = 0.9
"""Value of `turn` from which a face is turned away: judged by eye on 469 faces of PrivateTest, 5 % of which are."""


@dataclass(frozen=True)
class Face:
    """A face in an image, in pixels of that image, whose origin is the upper left corner of its upper left pixel.

    Attributes:
        x, y: left and upper edge of the detector's box; the box may reach beyond the image.
        width, height: size of the box.
        score: how sure the detector is: a probability for BlazeFace, the number of agreeing windows for a cascade.
        landmarks: x and y of the points that the detector gives. BlazeFace gives, with right and left being those of
            the person: right eye, left eye, tip of the nose, middle of the mouth, right ear, left ear.
    """

    x: float
    y: float
    width: float
    height: float
    score: float
    landmarks: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class CropRule:
    """How the square frame of FER-2013 follows from a detector's box.

    The frame may reach beyond the image, where the nearest pixel is repeated.

    Attributes:
        side: side of the frame as a factor of the mean of the box's width and height.
        shift: how far the frame's centre lies below that of the box, as a fraction of the box's height.

    Raises:
        ValueError: a side that is not above 0 and at most 10, or a shift of more than 10.
    """

    side: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.side <= 10 and abs(self.shift) <= 10):
            raise ValueError(f"a frame of {self.side} times the box, shifted by {self.shift}, is out of range")


def frame(face: Face, rule: CropRule) -> tuple[float, float, float]:
    """Left edge, upper edge and side of the square that is cut out, in pixels."""
    side = rule.side * (face.width + face.height) / 2
    return (
        face.x + face.width / 2 - side / 2,
        face.y + face.height / 2 + rule.shift * face.height - side / 2,
        side,
    )


def crop(image: NDArray[np.uint8], face: Face, rule: CropRule, size: int = SIDE) -> NDArray[np.uint8]:
    """The face as grey pixels, uint8 (size, size).

    Converted to grey and resampled as `data.readers.images` does it for training images: luma of ITU-R BT.601, then
    Pillow's bicubic filter, which averages when it shrinks. For the face of
    `WholeImage`, the result equals the reader's.

    Args:
        image: uint8 RGB (H, W, 3) or grey (H, W).
        face: where the face is.
        rule: the rule of the detector that found it.
        size: side of the result.
    """
    from PIL import Image

    left, top, side = frame(face, rule)
    margin = math.ceil(2 * max(side / size, 1)) + 1  # what the filter reads beyond the frame
    if side >= min(image.shape[:2]):
        margin = max(image.shape)  # all there is: the order of Pillow's two passes, which round, goes by the shape
    x, columns, beside = _pixels(left, side, margin, image.shape[1])
    y, rows, above = _pixels(top, side, margin, image.shape[0])
    region = Image.fromarray(image[rows, columns]).convert("L")
    if any(above + beside):
        region = Image.fromarray(np.pad(np.asarray(region), (above, beside), mode="edge"))
    box = (left - x, top - y, left - x + side, top - y + side)
    return np.asarray(region.resize((size, size), Image.Resampling.BICUBIC, box=box))


def concerns(image: NDArray[np.uint8], face: Face, rule: CropRule) -> tuple[str, ...]:
    """Why the network's answer for a face deserves less trust; empty if nothing speaks against it.

    - "small": the frame's side is below 40 pixels.
    - "cut": more than a tenth of the frame lies beyond the image.
    - "turned": the head is turned sideways by about 40 degrees or more; needs a detector that gives landmarks.
    """
    left, top, side = frame(face, rule)
    inside = _overlap(left, side, image.shape[1]) * _overlap(top, side, image.shape[0])
    found = {"small": side < SMALL, "cut": inside < 1 - CUT, "turned": abs(turn(face)) > TURNED}
    return tuple(name for name, true in found.items() if true)


def turn(face: Face) -> float:
    """How far the head is turned sideways: 0 is frontal, 1 about 45 degrees; negative to the image's left.

    It is where the tip of the nose lies between the ears, along the line through the eyes. 0 without landmarks.
    """
    if not face.landmarks:
        return 0.0
    right_eye, left_eye, nose, _, right_ear, left_ear = np.array(face.landmarks)
    along = (left_eye - right_eye) / max(np.linalg.norm(left_eye - right_eye), 1e-6)
    half = (left_ear - right_ear) @ along / 2
    return float((nose - (left_ear + right_ear) / 2) @ along / max(half, 1e-6))


def _pixels(start: float, length: float, margin: int, size: int) -> tuple[int, slice, tuple[int, int]]:
    """What covers the frame along one axis, and the margin as far as the image goes.

    Returns the first pixel, the pixels that are in the image, and the number of those to be added before and after.
    """
    first, end = math.floor(start), math.ceil(start + length)
    first = min(first, max(first - margin, 0), size - 1)
    end = max(end, min(end + margin, size), 1)
    inside = slice(max(first, 0), min(end, size))
    return first, inside, (inside.start - first, end - inside.stop)


def _overlap(start: float, length: float, size: int) -> float:
    """The share of an interval that lies in [0, size]."""
    return max(min(start + length, size) - max(start, 0), 0) / length
