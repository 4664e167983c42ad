"""Near-duplicates: images that are not the same pixel for pixel, but of the same photograph.

FER-2013 has the same photograph in other brightness, with and without a stock agency's watermark, cropped a few pixels
further left, saved twice as JPEG, mirrored. Two images are compared by OpenCV's normalised cross-correlation (Lewis
1995, "Fast Normalized Cross-Correlation"; `cv2.matchTemplate`) of their fine structure: faces in the same light share
their coarse structure, whoever they are of. The centre of one is slid over the other by up to `SHIFT` pixels each way.

Candidates are the pairs whose thumbnails correlate, one of them moved a little or not; only they are slid.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.quality.blank import is_blank
from fer_lightning.data.table import SIDE, FaceTable

log = logging.getLogger(__name__)

METHOD = 2
"""Raise this whenever what is found changes: pairs kept on disk are then left alone."""

SIMILAR = 0.7
"""Correlation from which two images are near-duplicates.

Chosen by looking at pairs of FER-2013: their correlations have two heaps, one of strangers around 0.35 and one of the
same photographs around 0.9, with the fewest pairs between 0.65 and 0.75; docs/data.md tells what was seen on each side.
"""

SHIFT = 4
"""Pixels that one image may be moved against the other, each way."""

_FINE = 3.0  # standard deviations, in pixels, of the blurs that are taken away: 3 leaves what tells faces apart,
_COARSE = 6.0  # 6 leaves enough to survive the thumbnail
_CROP = 42  # of which a thumbnail is made, so that it can be made at other places too
_STEPS = [(y, x) for y in (0, 3, -3) for x in (0, 3, -3)]  # pixels: thumbnails survive half of that
_THUMBNAIL = 12
_ENOUGH = 64  # later images that one is found to be like: the frames of a film are all alike
_CANDIDATE = 0.72  # correlation of thumbnails: of 5,396 pairs that any setting found in FER-2013, this finds 98 %
_BLOCK = 512  # thumbnails compared with all others at once: two blocks of 70 MB for FER-2013
_MINUTES = 0.1  # for ten thousand images; it goes with their square
_UNSURE = 0.5  # below this the other direction cannot help


class NearPairs(NamedTuple):
    """Pairs of near-duplicates, M of them.

    Attributes:
        first, second: int64 (M,), positions of the two images, first < second.
        similarity: float32 (M,), their correlation, `SIMILAR` to 1.
        mirrored: bool (M,), one is the mirror image of the other.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]
    mirrored: NDArray[np.bool_]


def near_pairs(images: NDArray[np.uint8]) -> NearPairs:
    """All pairs of near-duplicates among images (N, 48, 48) that differ from each other; blank ones have none.

    For each image the search ends when 64 later ones are found to be like it, as they are, and as many mirrored. About
    a minute and 1 GB for FER-2013 on one core. A pair that is alike both ways round counts once.
    """
    shown = np.flatnonzero(~is_blank(images))
    fine = cache(lambda i: _without_blur(images[shown[i]], _FINE))
    found = []
    for block, mirrored in _candidates(images[shown]):
        alike = Counter[int]()
        for i, j in block.tolist():
            if alike[i] < _ENOUGH and (similarity := _similarity(fine(i), fine(j), mirrored)) >= SIMILAR:
                alike[i] += 1
                found.append((i, j, similarity, mirrored))
    table = np.array(found, dtype=[("i", "i8"), ("j", "i8"), ("similarity", "f4"), ("mirrored", "?")])
    table = table[np.lexsort((table["mirrored"], -table["similarity"], table["j"], table["i"]))]
    pairs = table[np.unique(table[["i", "j"]], return_index=True)[1]]
    return NearPairs(shown[pairs["i"]], shown[pairs["j"]], pairs["similarity"].copy(), pairs["mirrored"].copy())


def near_twins(faces: FaceTable, cache_root: Path) -> tuple[NDArray[np.int64], NearPairs]:
    """Group number of each image, int64 (N,), and the pairs of rows that brought together what differs.

    Two rows share a group where they are identical, near-duplicates, or joined by a chain of such. Identical images
    stand in the pairs by the first of them. Pairs are kept on disk by the images' digests, since they take long.
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
    damaged = (ValueError, KeyError, EOFError, BadZipFile)
    with suppress(OSError, *damaged), file.open("rb") as opened, np.load(opened) as kept:
        return NearPairs(**{name: kept[name] for name in NearPairs._fields})
    if len(first) > 5000:
        minutes = max(1, round(_MINUTES * (len(first) / 1e4) ** 2))
        log.warning("looking for near-duplicates among %s images: about %d min, once", f"{len(first):,}", minutes)
    order = np.sort(first)
    found = near_pairs(faces.images[order])
    pairs = found._replace(first=order[found.first], second=order[found.second])
    built = file.with_name(f".{uuid.uuid4().hex}.npz")
    with suppress(OSError):  # a cache that cannot be written costs time only
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(built, **pairs._asdict())
        built.replace(file)
    return pairs


def _without_blur(image: NDArray[np.uint8], sigma: float) -> NDArray[np.float32]:
    import cv2  # here and below: most runs look for no near-duplicates

    grey = image.astype(np.float32)
    return grey - cv2.GaussianBlur(grey, (0, 0), sigma)


def _candidates(images: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """Pairs (i, j) with i < j whose thumbnails correlate, j's moved or not, and whether j's are mirrored: int64 (M, 2),
    all pairs of an i in one piece, the likeliest first."""
    coarse = [_without_blur(image, _COARSE) for image in images]
    base = _thumbnails(coarse, 0, 0)
    for mirrored in (False, True):
        others = [_thumbnails([c[:, ::-1] for c in coarse] if mirrored else coarse, y, x) for y, x in _STEPS]
        for start in range(0, len(base), _BLOCK):
            block = base[start : start + _BLOCK]
            highest = block @ others[0][start:].T
            for other in others[1:]:
                np.maximum(highest, block @ other[start:].T, out=highest)
            i, j = np.nonzero(highest > _CANDIDATE)
            i, j = i[j > i], j[j > i]
            order = np.lexsort((-highest[i, j], i))
            yield np.stack([i[order] + start, j[order] + start], axis=1), mirrored


def _thumbnails(coarse: Sequence[NDArray[np.float32]], y: int, x: int) -> NDArray[np.float32]:
    """Standardised thumbnails of crops (y, x) pixels off the centre: float32 (N, 144) of length 1 and mean 0."""
    import cv2

    rows, columns = ((SIDE - _CROP) // 2 + offset for offset in (y, x))
    crops = [np.ascontiguousarray(c[rows : rows + _CROP, columns : columns + _CROP]) for c in coarse]
    size = (_THUMBNAIL, _THUMBNAIL)
    small = [cv2.resize(crop, size, interpolation=cv2.INTER_AREA).ravel() for crop in crops]
    standard = np.array(small, dtype=np.float32).reshape(len(crops), _THUMBNAIL**2)
    standard -= standard.mean(1, keepdims=True)
    standard /= np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-6)
    return standard


def _similarity(a: NDArray[np.float32], b: NDArray[np.float32], mirrored: bool) -> float:
    """The highest correlation of one's centre with the other, over shifts, whichever of them is moved."""
    if mirrored:
        b = np.ascontiguousarray(b[:, ::-1])
    one = _slid(a, b)
    return one if one < _UNSURE else max(one, _slid(b, a))


def _slid(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    import cv2

    centre = np.ascontiguousarray(b[SHIFT : SIDE - SHIFT, SHIFT : SIDE - SHIFT])
    return float(cv2.matchTemplate(a, centre, cv2.TM_CCOEFF_NORMED).max())
