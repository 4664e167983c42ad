"""BlazeFace full-range, the face detector of Google's MediaPipe (Bazarevsky et al., arXiv:1907.05047; Apache-2.0).

The network sees 192 by 192 pixels, and has one anchor in each cell of a 48 by 48 grid. For each anchor it gives a logit
and eight points relative to it, in pixels: centre and size of the box, and six landmarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fer_lightning.errors import UserError, flat, printable
from fer_lightning.inference.faces.detector import Detector, OwnNetwork, scaled
from fer_lightning.inference.faces.frame import Face

INPUT, CELLS, POINTS = 192, 48, 8

THRESHOLD = 0.5
"""Probability from which a box counts as a face: MediaPipe's own. Of the boxes from 0.3 to 0.5, a quarter are wrong."""

PART_THRESHOLD = 0.6
"""The same for parts of an image: 66 pictures without a face (scikit-image, three sizes) give 2 boxes; with 0.5, 6."""

OVERLAP = 0.45
"""Share of the smaller of two boxes from which both are the same face."""

PART = 480
"""Side in pixels of the smallest part of an image that is searched on its own."""

_ANCHORS = np.stack(np.meshgrid(*2 * [(np.arange(CELLS) + 0.5) * INPUT / CELLS]), -1).reshape(-1, 1, 2)


class BlazeFace(Detector):
    """Faces with landmarks by BlazeFace full-range; the score is a probability.

    In one pass the network finds faces of 1/13 of the longer side or more. So that smaller ones are found as well,
    images of more than 480 pixels are also searched in overlapping square parts, of 480 pixels or of a third of the
    longer side, whichever is more. Of the astronaut of scikit-image in rows and columns, one pass finds 2 of 25 faces
    of 40 pixels in 640 by 480, and none of 109 faces of 120 pixels in 4,000 by 3,000; with parts it is 12 and 94, in
    three and four times the time.

    Args:
        path: the model file, .tflite.
        fast: search images in one pass only, for video.

    Raises:
        UserError: the file is not BlazeFace full-range.
    """

    name = "blaze"

    def __init__(self, path: Path, *, fast: bool = False) -> None:
        self.path, self.fast = path, fast
        self._own = OwnNetwork(self._load)

    def _load(self) -> Any:
        where = printable(self.path)
        try:
            network = cv2.dnn.readNetFromTFLite(np.frombuffer(self.path.read_bytes(), np.uint8))
            outputs = _forward(network, np.zeros((INPUT, INPUT, 3), np.uint8))
        except OSError as error:
            raise UserError(f"{where}: {flat(error)}") from error
        except cv2.error as error:
            raise UserError(f"{where} is not a network that OpenCV can read: use BlazeFace full-range") from error
        if [output.size for output in outputs] != [len(_ANCHORS), len(_ANCHORS) * POINTS * 2]:
            raise UserError(
                f"{where} is another network than BlazeFace full-range (192 by 192, 2,304 anchors): use that"
            )
        return network

    def _find(self, image: NDArray[np.uint8]) -> Iterable[Face]:
        height, width = image.shape[:2]
        longer = max(height, width)
        faces = list(self._search(image, longer, THRESHOLD))
        if not self.fast and longer > PART:
            faces += self._search(image, max(PART, min(height, width, longer // 3)), PART_THRESHOLD)
        return _distinct(faces)

    def _search(self, image: NDArray[np.uint8], side: int, threshold: float) -> Iterator[Face]:
        """The faces in overlapping square parts of `side` pixels, less where the image is narrower."""
        small = scaled(image, INPUT / side)
        scale = np.divide(small.shape[1::-1], image.shape[1::-1])
        for top in _starts(small.shape[0]):
            for left in _starts(small.shape[1]):
                part = small[top : top + INPUT, left : left + INPUT]
                above, before = (INPUT - part.shape[0]) // 2, (INPUT - part.shape[1]) // 2
                padded = np.zeros((INPUT, INPUT, 3), np.uint8)
                padded[above : above + part.shape[0], before : before + part.shape[1]] = part
                logits, points = _forward(self._own.network, padded)
                scores = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -80, 80)))
                points = points.reshape(-1, POINTS, 2)
                for anchor in np.flatnonzero(scores > threshold):
                    size = points[anchor, 1]
                    places = points[anchor] + _ANCHORS[anchor] - (before, above) + (left, top)
                    ends = places[0] - size / 2, places[0] + size / 2
                    if size.min() <= 0 or _cut(ends, (left, top), small.shape[1::-1]):
                        continue
                    landmarks = tuple((float(x), float(y)) for x, y in places[2:] / scale)
                    x, y, width, height = (float(value) for value in (*ends[0] / scale, *size / scale))
                    yield Face(x, y, width, height, float(scores[anchor]), landmarks)


def _forward(network: Any, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Logits and points of the anchors, or what another network gives: the smaller output first, flat."""
    network.setInput(cv2.dnn.blobFromImage(pixels, 1 / 127.5, mean=(127.5, 127.5, 127.5)))
    outputs = network.forward(network.getUnconnectedOutLayersNames())
    return sorted((np.asarray(output).ravel() for output in outputs), key=len)


def _starts(length: int) -> list[int]:
    """Where parts of INPUT pixels start that cover `length` pixels and overlap by a quarter or more."""
    steps = max(math.ceil((length - INPUT) / (0.75 * INPUT)), 0)
    return [round(i * (length - INPUT) / steps) for i in range(steps + 1)] if steps else [0]


def _cut(ends: Sequence[NDArray[Any]], start: tuple[int, int], size: tuple[int, ...]) -> bool:
    """Whether a box touches an edge within the image: then another part, or the first pass, has the complete face."""
    first, last = np.array(start), np.array(start) + INPUT
    return bool(np.any((ends[0] < first + 1) & (first > 0)) or np.any((ends[1] > last - 1) & (last < size)))


def _distinct(faces: list[Face]) -> Iterator[Face]:
    """The faces without those that overlap one of a higher score."""
    kept = np.empty((0, 4))
    for face in sorted(faces, key=lambda face: -face.score):
        box = np.array([face.x, face.y, face.x + face.width, face.y + face.height])
        sides = np.minimum(kept[:, 2:], box[2:]) - np.maximum(kept[:, :2], box[:2])
        areas = np.minimum((kept[:, 2:] - kept[:, :2]).prod(1), face.width * face.height)
        if not np.any(np.clip(sides, 0, None).prod(1) > OVERLAP * areas):
            kept = np.vstack([kept, box])
            yield face
