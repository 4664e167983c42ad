"""Candidates for near-duplicates: pairs of images whose thumbnails correlate, with or without a small shift.

All pairs of a large set are too many, so the thumbnails are divided into cells, each around one of them (an inverted
file, as in Sivic and Zisserman 2003, "Video Google"), and an image is compared with those in the cells that it is
most similar to. faiss-cpu did the same in no less time, and users report crashes beside PyTorch on macOS and Windows
(each brings its own OpenMP: faiss-wheels, issue 73); usearch took several times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.table import SIDE

COARSE = 6.0
"""Standard deviation, in pixels, of the blur that is subtracted from an image before it is reduced."""

_CROP = 42  # size of the crop for a thumbnail, so that it can also be taken at other offsets
_STEPS = (0, 3, -3)  # pixels that it is shifted in each direction: thumbnails tolerate half of that
_THUMBNAIL = 12
_CORRELATION = 0.72  # of thumbnails: finds 98 % of the 5,396 pairs in FER-2013 that any setting finds
_EXHAUSTIVE = 5000  # up to this number of images, all pairs are compared
_CELLS = 2.8  # times the square root of the number of images
_SEARCHED = 64  # cells searched per image: finds 99.8 % of what the comparison of all pairs finds in FER-2013
_MOST = 256  # candidates per image, and per part of a cell: the frames of a film are all alike
_BLOCK, _PART = 8192, 2048  # thumbnails compared with each other at a time: at most 64 MB of correlations

Hits = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""i and j of pairs, and their correlation, each (M,)."""

_NONE = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


def candidates(images: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """Pairs (i, j) with i < j of images (N, 48, 48) whose thumbnails correlate, that of j shifted or not.

    Yields:
        int64 (M, 2), ordered by i, then by falling correlation, and whether j is mirrored: first pairs that are not,
        then those that are.
    """
    if not len(images):
        return
    cells = _Cells(_thumbnails(images, 0, [0])[:, 0])
    found: dict[bool, Hits] = {False: _NONE, True: _NONE}
    for y in _STEPS:
        shifted = _thumbnails(images, y, _STEPS)
        # The mirror image of a shifted crop is the crop, shifted the other way, of the mirror image.
        mirror = shifted.reshape(*shifted.shape[:2], _THUMBNAIL, _THUMBNAIL)[..., ::-1].reshape(shifted.shape)
        variants = np.stack([shifted, mirror], axis=2).reshape(len(images), -1, _THUMBNAIL**2)
        hits = list(cells.search(variants))
        for mirrored in (False, True):
            own = [tuple(part[is_mirrored == mirrored] for part in pairs) for *pairs, is_mirrored in hits]
            found[mirrored] = _highest([found[mirrored], *own])
    for mirrored, (i, j, _) in found.items():
        yield np.stack([i, j], axis=1), mirrored


class _Cells:
    """The thumbnails (N, 144) that search, and the cells that each of them searches."""

    def __init__(self, base: NDArray[np.float32]) -> None:
        self.base, n = base, len(base)
        number = 1 if n <= _EXHAUSTIVE else round(_CELLS * math.sqrt(n))
        # Thumbnails themselves rather than averages of them: the result does not depend on a machine's rounding.
        self.centres = base[np.sort(np.random.default_rng(0).choice(n, number, replace=False))]
        self.blocks = [(start, self._searching(start)) for start in range(0, n, _BLOCK)]

    def _searching(self, start: int) -> list[NDArray[np.int64]]:
        """For each cell, the rows of a block that search it."""
        block = self.base[start : start + _BLOCK]
        searched = min(_SEARCHED, len(self.centres))
        nearest = np.argpartition(-(block @ self.centres.T), searched - 1, axis=1)[:, :searched]
        rows = np.repeat(np.arange(start, start + len(block)), searched)
        return _grouped(rows, nearest.ravel(), len(self.centres))

    def search(self, variants: NDArray[np.float32]) -> Iterator[tuple[NDArray[Any], ...]]:
        """Pairs (i, j) with i < j: i of the thumbnails that search, j of `variants` (N, V, 144), every other one
        mirrored. Yields i, j, the correlation and whether it is of a mirrored variant, each (M,)."""
        v = variants.shape[1]
        others = variants.reshape(-1, variants.shape[2])
        nearest = [
            (others[start : start + _BLOCK] @ self.centres.T).argmax(1) for start in range(0, len(others), _BLOCK)
        ]
        cells = _grouped(np.arange(len(others)), np.concatenate(nearest), len(self.centres))
        for start, searching in self.blocks:
            for rows, members in zip(searching, cells, strict=True):
                later = members[np.searchsorted(members, start * v) :]
                for first in range(0, len(later) if len(rows) else 0, _PART):
                    part = later[first : first + _PART]
                    i, member, correlation = self._compare(rows, part // v, others[part])
                    yield i, part[member] // v, correlation, part[member] % 2 == 1

    def _compare(self, rows: NDArray[np.int64], members: NDArray[np.int64], others: NDArray[np.float32]) -> Hits:
        """i, the position of j among `members`, and their correlation."""
        correlations = self.base[rows] @ others.T
        # Much faster than np.nonzero in two dimensions.
        row, member = np.divmod(np.flatnonzero(correlations > _CORRELATION), len(members))
        later = rows[row] < members[member]
        row, member = row[later], member[later]
        hits = rows[row], member, correlations[row, member]
        return hits if len(row) <= _MOST else _highest([hits])


def _grouped(values: NDArray[np.int64], keys: NDArray[np.int64], number: int) -> list[NDArray[np.int64]]:
    """`values` of each key from 0 to `number` - 1, in their order."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, number)))


def _highest(hits: list[Hits]) -> Hits:
    """Each pair once, ordered by i, then by falling correlation; no more than `_MOST` of an i."""
    i, j, correlation = (np.concatenate(parts) for parts in zip(*hits, strict=True))
    order = np.lexsort((-correlation, j, i))
    i, j, correlation = i[order], j[order], correlation[order]
    once = np.ones(len(i), dtype=bool)
    once[1:] = (i[1:] != i[:-1]) | (j[1:] != j[:-1])
    i, j, correlation = i[once], j[once], correlation[once]
    order = np.lexsort((-correlation, i))
    i, j, correlation = i[order], j[order], correlation[order]
    among = np.arange(len(i)) - np.searchsorted(i, i) < _MOST
    return i[among], j[among], correlation[among]


def _thumbnails(images: NDArray[np.uint8], y: int, xs: Sequence[int]) -> NDArray[np.float32]:
    """Standardised thumbnails of crops y and each of `xs` pixels off the centre: float32 (N, len(xs), 144) with norm 1
    and mean 0.

    As OpenCV's `resize` by area reduces `without_blur(image, COARSE)`; both are linear along each axis, so that a few
    matrix products make all of them.
    """
    rows = _reduction(y)
    columns = np.concatenate([_reduction(x) for x in xs])
    blur = _blur(COARSE)
    thumbnails = np.empty((len(images), len(xs), _THUMBNAIL**2), dtype=np.float32)
    for start in range(0, len(images), _BLOCK):
        grey = images[start : start + _BLOCK].astype(np.float32)
        small = rows @ (grey @ columns.T) - (rows @ blur) @ (grey @ (columns @ blur).T)
        small = small.reshape(len(grey), _THUMBNAIL, len(xs), _THUMBNAIL).transpose(0, 2, 1, 3)
        thumbnails[start : start + _BLOCK] = small.reshape(len(grey), len(xs), -1)
    thumbnails -= thumbnails.mean(2, keepdims=True)
    thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=2, keepdims=True), 1e-6)
    return thumbnails


def _reduction(offset: int) -> NDArray[np.float32]:
    """What takes a crop out of 48 pixels, `offset` pixels off the centre, and reduces it: float32 (12, 48)."""
    import cv2

    matrix = np.zeros((_THUMBNAIL, SIDE), dtype=np.float32)
    first = (SIDE - _CROP) // 2 + offset
    crop = np.eye(_CROP, dtype=np.float32)
    matrix[:, first : first + _CROP] = cv2.resize(crop, (_CROP, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return matrix


def _blur(sigma: float) -> NDArray[np.float32]:
    """A Gaussian blur of 48 pixels as a matrix (48, 48)."""
    import cv2

    columns = [cv2.GaussianBlur(unit[:, None], (0, 0), sigma).ravel() for unit in np.eye(SIDE, dtype=np.float32)]
    return np.stack(columns, axis=1)


def without_blur(image: NDArray[np.uint8], sigma: float) -> NDArray[np.float32]:
    """An image (H, W) less its blur, whose standard deviation is `sigma` pixels."""
    import cv2  # here and above: most runs look for no near-duplicates

    grey = image.astype(np.float32)
    return grey - cv2.GaussianBlur(grey, (0, 0), sigma)
