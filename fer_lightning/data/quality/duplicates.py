"""Near-duplicates: images that differ in their pixels, but show the same photograph.

FER-2013 contains photographs several times: in other brightness, with and without a watermark, shifted by a few pixels,
compressed twice as JPEG, mirrored. Two images are compared by OpenCV's normalised cross-correlation (Lewis
1995, "Fast Normalized Cross-Correlation"; `cv2.matchTemplate`) of their fine structure: faces in the same light share
their coarse structure, even those of different people. The centre of one slides over the other by up to `SHIFT` pixels
each way.

Only candidates are compared so, see `fer_lightning.data.quality.candidates`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.quality.blank import is_blank
from fer_lightning.data.quality.candidates import candidates, without_blur
from fer_lightning.data.readers.cache import replacing, stored_arrays
from fer_lightning.data.table import SIDE, FaceTable
from fer_lightning.errors import UserError

log = logging.getLogger(__name__)

METHOD = 3
"""Increase this whenever the results change, so that pairs cached on disk are ignored."""

SIMILAR = 0.7
"""Correlation from which two images are near-duplicates.

Chosen by inspecting pairs of FER-2013: their correlations have two modes, one of different people around 0.35 and one
of the same photographs around 0.9, with the fewest pairs between 0.65 and 0.75; see docs/data.md.
"""

SHIFT = 4
"""Largest shift between two images, in pixels, in each direction."""

_FINE = 3.0  # standard deviation, in pixels, of the blur that is subtracted: keeps what distinguishes faces
_ENOUGH = 64  # near-duplicates searched per image: the frames of a film are all alike
_MINUTES = 0.08  # for ten thousand images; grows with the power 1.5
_KEPT = 2**15  # images without their blur that are kept in memory: 300 MB
_FLAT = 1.0  # sum of squares, in grey levels, below which an image has nothing to compare
_UNSURE = 0.5  # below this correlation, exchanging the two images does not help


class NearPairs(NamedTuple):
    """M pairs of near-duplicates.

    Attributes:
        first, second: int64 (M,), indices of the two images, first < second.
        similarity: float32 (M,), their correlation, from `SIMILAR` to 1.
        mirrored: bool (M,), whether one is mirrored.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]
    mirrored: NDArray[np.bool_]


def near_pairs(images: NDArray[np.uint8]) -> NearPairs:
    """All pairs of near-duplicates among distinct images (N, 48, 48); blank images have none.

    For each image the search ends after 64 later near-duplicates, and as many mirrored ones. For FER-2013 it takes
    half a minute of one core and 0.8 GB, and finds 99.8 % of the pairs that are found when all thumbnails are compared
    with each other. A pair that is similar both mirrored and not counts once.
    """
    rows = np.flatnonzero(~is_blank(images))
    fine = lru_cache(_KEPT)(lambda i: without_blur(images[rows[i]], _FINE))
    similar = []
    for found, mirrored in candidates(images[rows]):
        for of_one in np.split(found, np.flatnonzero(np.diff(found[:, 0])) + 1) if len(found) else []:
            i, alike = int(of_one[0, 0]), 0
            windows = _Windows(fine(i))
            for start in range(0, len(of_one), _ENOUGH):
                some = of_one[start : start + _ENOUGH, 1].tolist()
                others = [fine(j)[:, ::-1] if mirrored else fine(j) for j in some]
                for j, similarity in zip(some, windows.similarities(others), strict=True):
                    if similarity >= SIMILAR and alike < _ENOUGH:
                        alike += 1
                        similar.append((i, j, similarity, mirrored))
                if alike == _ENOUGH:
                    break
    table = np.array(similar, dtype=[("i", "i8"), ("j", "i8"), ("similarity", "f4"), ("mirrored", "?")])
    table = table[np.lexsort((table["mirrored"], -table["similarity"], table["j"], table["i"]))]
    pairs = table[np.unique(table[["i", "j"]], return_index=True)[1]]
    return NearPairs(rows[pairs["i"]], rows[pairs["j"]], pairs["similarity"].copy(), pairs["mirrored"].copy())


def near_duplicates(faces: FaceTable, cache_root: Path) -> tuple[NDArray[np.int64], NearPairs]:
    """Group number of each image, int64 (N,), and the pairs of near-duplicates that the groups follow from.

    Two images share a group if they are duplicates, near-duplicates, or joined by a chain of such. In the pairs, the
    first of several duplicates represents them. Pairs are cached on disk, by the digests of the images.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _, first, group = np.unique(faces.digests, return_index=True, return_inverse=True)
    pairs = _recalled(faces, first, cache_root)
    edges = group[pairs.first], group[pairs.second]
    graph = coo_matrix((np.ones(len(pairs.first)), edges), shape=(len(first), len(first)))
    return connected_components(graph, directed=False)[1].astype(np.int64)[group], pairs


def _recalled(faces: FaceTable, first: NDArray[np.int64], cache_root: Path) -> NearPairs:
    digest = hashlib.blake2b(faces.digests.tobytes(), digest_size=16).hexdigest()
    file = cache_root / f"near-v{METHOD}" / f"{digest}.npz"
    with suppress(UserError):  # missing or damaged
        return NearPairs(**stored_arrays(file))
    if len(first) > 5000:
        minutes = max(1, round(_MINUTES * (len(first) / 1e4) ** 1.5))
        log.warning(
            "searching for near-duplicates among %s images: takes about %d min, once", f"{len(first):,}", minutes
        )
    order = np.sort(first)
    pairs = near_pairs(faces.images[order])
    pairs = pairs._replace(first=order[pairs.first], second=order[pairs.second])
    with suppress(OSError), replacing(file) as built:  # a cache that cannot be written costs only time
        np.savez(built, **pairs._asdict())
    return pairs


class _Windows:
    """An image, and everything in it that the centre of another can be compared with: windows of its size, one for
    each shift. All are correlated with the centres of many others in one matrix product."""

    def __init__(self, image: NDArray[np.float32]) -> None:
        side = SIDE - 2 * SHIFT
        self.image = image
        self.pixels = np.lib.stride_tricks.sliding_window_view(image, (side, side)).reshape(-1, side * side)
        squares = np.einsum("ij,ij->i", self.pixels, self.pixels) - self.pixels.sum(1) ** 2 / self.pixels.shape[1]
        self.norms = np.sqrt(np.maximum(squares, _FLAT))

    def similarities(self, others: Sequence[NDArray[np.float32]]) -> list[float]:
        """The highest correlation over all shifts with each of the others, in both directions."""
        centres = np.stack([other[SHIFT : SIDE - SHIFT, SHIFT : SIDE - SHIFT].ravel() for other in others])
        centres -= centres.mean(1, keepdims=True)
        centres /= np.sqrt(np.maximum(np.einsum("ij,ij->i", centres, centres), _FLAT))[:, None]
        highest = ((self.pixels @ centres.T) / self.norms[:, None]).max(0).tolist()
        return [
            one if one < _UNSURE else max(one, _best_shift(other, self.image))
            for one, other in zip(highest, others, strict=True)
        ]


def _best_shift(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    import cv2

    centre = np.ascontiguousarray(b[SHIFT : SIDE - SHIFT, SHIFT : SIDE - SHIFT])
    return float(cv2.matchTemplate(np.ascontiguousarray(a), centre, cv2.TM_CCOEFF_NORMED).max())
