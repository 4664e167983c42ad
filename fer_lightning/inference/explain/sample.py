"""The labelled faces that an explanation is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.config.dataset import cache_root, settings_of
from fer_lightning.data.protocols import Rows
from fer_lightning.data.readers import sources
from fer_lightning.data.table import UNLABELLED, FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference import labelled
from fer_lightning.inference.evaluate import rows_of
from fer_lightning.inference.predictor import LoadedModel


def labelled_faces(loaded: Sequence[LoadedModel], data: str | None, split: str, trust: bool) -> tuple[FaceTable, Rows]:
    """A table and the rows of a split's labelled images, as `fer_lightning.inference.evaluate.evaluate` takes them.

    Raises:
        UserError: there are no such images, or they do not fit the models.
    """
    runs = [one.path for one in loaded if one.description is None]
    if data is None:
        if len(runs) < len(loaded):
            raise UserError("a model file has no data of its own: name some with --data")
        found = labelled.of_runs(
            runs, remedy="or explain what is there now with --data", cleaned=split == "train", trust=trust
        )
        faces = found.faces
        rows = getattr(found.parts, split) if split in ("train", "val", "test") else rows_of(faces, split)
    else:
        own: dict[str, Any] = settings_of(runs[0], trust=trust)["data"] if runs else {"cache_dir": None}
        faces = sources.load(data, cache_dir=cache_root(own)).as_known_by(loaded[0].classes, own.get("merge"))
        rows = rows_of(faces, split)
    rows = rows[faces.labels[rows] != UNLABELLED]
    if not len(rows):
        raise UserError(f"{faces.source}: no image of the split '{split}' has a label; choose another --split")
    return faces, rows


def stratified(labels: NDArray[np.int64], n: int, seed: int = 0) -> NDArray[np.int64]:
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
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), k, replace=False) for label, k in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
