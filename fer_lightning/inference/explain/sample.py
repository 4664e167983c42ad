"""The labelled faces that an explanation is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.protocols import Rows
from fer_lightning.data.table import UNLABELLED, FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference import labelled
from fer_lightning.inference.predictor import LoadedModel


def labelled_faces(loaded: Sequence[LoadedModel], data: str | None, split: str, trust: bool) -> tuple[FaceTable, Rows]:
    """A table and the rows of a split's labelled images, see `fer_lightning.inference.labelled.split_of`.

    Raises:
        UserError: there are no such images, or they do not fit the models.
    """
    chosen = labelled.split_of(loaded, data, split, remedy="or explain what is there now with --data", trust=trust)
    faces = chosen.faces
    rows = chosen.rows[faces.labels[chosen.rows] != UNLABELLED]
    if not len(rows):
        raise UserError(f"{faces.source}: no image of the split '{split}' has a label; choose another --split")
    return faces, rows


def stratified(labels: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Indices of `n` of the labels (N,), ascending, with the classes' shares and, if `n` allows, one image of each
    class or more.

    All of them if `n` is 0 or too large. The rounding follows the largest remainders.
    """
    if n == 0 or n >= len(labels):
        return np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * n / len(labels)
    take = np.maximum(exact.astype(np.int64), 1)
    order = np.argsort(exact.astype(np.int64) - exact, kind="stable")
    take[order[: max(n - take.sum(), 0)]] += 1
    while take.sum() > n:  # where rare classes got more than their share
        take[take.argmax()] -= 1
    rng = np.random.default_rng(0)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), k, replace=False) for label, k in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
