"""FaceTable: the table of faces that every data source returns.

Two images are *duplicates* if their pixels are identical, and *near-duplicates* if they show the same photograph, see
`fer_lightning.data.quality.duplicates`. `data.twins` chooses whether near-duplicates, too, count as the same image: in
hold-outs, folds and the scores of clean test images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.errors import UserError

FER_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The seven classes of FER-2013, in label order 0–6."""

SIDE = 48
"""Height and width of a face, in pixels."""

UNLABELLED = -1

SPLITS = ("train", "val", "public", "private", "test")
"""The splits that a source assigns images to; `FaceTable.split` holds indices into this tuple.

`public` and `private` are Kaggle's PublicTest and PrivateTest; `test` is a test set that is not divided in two.
"""


@dataclass(frozen=True)
class FaceTable:
    """Faces and their labels.

    Attributes:
        images: uint8 (N, 48, 48), grey, often a read-only memory map.
        labels: int64 (N,), indices into `classes`, or `UNLABELLED`.
        split: int8 (N,), indices into `SPLITS`.
        ids: bytes (N,), UTF-8: the file inside a folder or archive, or "row 17" of a CSV (row 0 follows the header).
        classes: class names in label order.
        source: the path or name that the user gave, for messages and reports.
        fingerprint: hex digest of the content the table was read from.
        votes: uint8 (N, 10), taggers' votes in the order of `fer_lightning.data.ferplus.VOTES`, if there are any.
        targets: float32 (N, C), distributions over the classes to train on instead of labels, if there are any; all 0
            for an image that is not in the training set.
        near: group number of each image, int64 (N,), if near-duplicates count as the same image; otherwise None.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    split: NDArray[np.int8]
    ids: NDArray[np.bytes_]
    classes: tuple[str, ...]
    source: str
    fingerprint: str
    votes: NDArray[np.uint8] | None = None
    targets: NDArray[np.float32] | None = None
    near: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        assert self.images.shape == (n, SIDE, SIDE) and self.images.dtype == np.uint8
        assert self.labels.shape == self.split.shape == self.ids.shape == (n,)
        assert self.labels.dtype == np.int64 and self.split.dtype == np.int8 and self.ids.dtype.kind == "S"
        assert self.votes is None or self.votes.shape == (n, 10)
        assert self.targets is None or self.targets.shape == (n, len(self.classes))

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Row numbers of the images in any of `splits`, ascending: int64 (M,)."""
        return np.flatnonzero(np.isin(self.split, [SPLITS.index(s) for s in splits]))

    @cached_property
    def training_labels(self) -> NDArray[np.int64]:
        """Labels for training, int64 (N,): with targets, the class of the largest share (the first of equals), and
        `UNLABELLED` for an image that is not in the training set; otherwise `labels`."""
        if self.targets is None:
            return self.labels
        return np.where(self.targets.any(1), self.targets.argmax(1), UNLABELLED)

    def counts(self, rows: NDArray[Any] | None = None, *, training: bool = False) -> NDArray[np.int64]:
        """Labelled images per class, int64 (C,), of all rows or of `rows`; by `training_labels` if `training`."""
        labels = self.training_labels if training else self.labels
        labels = labels if rows is None else labels[rows]
        return np.bincount(labels[labels != UNLABELLED], minlength=len(self.classes))

    @cached_property
    def digests(self) -> NDArray[np.void]:
        """A 16-byte digest of the pixels of each image, (N,)."""
        images = np.ascontiguousarray(self.images).reshape(len(self), SIDE * SIDE)
        return np.array([hashlib.blake2b(row.data, digest_size=16).digest() for row in images], dtype="V16")

    def pixel_digests(self, rows: NDArray[np.int64]) -> list[str]:
        """Digests of the pixels of `rows` (M,), for files: M strings that no spreadsheet mistakes for numbers."""
        return [f"b2:{digest.tobytes().hex()[:16]}" for digest in self.digests[rows]]

    @cached_property
    def identical(self) -> NDArray[np.int64]:
        """Group number of each image, int64 (N,): duplicates share one."""
        return np.unique(self.digests, return_inverse=True)[1].astype(np.int64)

    @property
    def duplicate_groups(self) -> NDArray[np.int64]:
        """Group number of each image, int64 (N,): images that count as the same share one."""
        return self.identical if self.near is None else self.near

    def with_labels(self, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> FaceTable:
        """A copy with `labels` (M,) for the images in `rows` (M,); their targets become one-hot."""
        all_labels, targets = self.labels.copy(), self.targets
        all_labels[rows] = labels
        if targets is not None:
            one_hot = np.eye(len(self.classes) + 1, dtype=np.float32)[:, :-1]  # the last row is for UNLABELLED, -1
            targets = targets.copy()
            targets[rows] = one_hot[labels]
        return replace(self, labels=all_labels, targets=targets)

    def without(self, rows: NDArray[np.int64]) -> FaceTable:
        """A copy without `rows` (M,)."""
        return self if not len(rows) else self._rows(~np.isin(np.arange(len(self)), rows))

    def only(self, classes: Sequence[str]) -> FaceTable:
        """A copy with only `classes`, in that order; unlabelled images stay.

        Raises:
            UserError: a name is not among the classes of the table, or is given twice.
        """
        for name in classes:
            if name not in self.classes:
                raise UserError(f"data.classes: {self.source} has no class '{name}', only {', '.join(self.classes)}")
        if len(set(classes)) != len(classes):
            raise UserError(f"data.classes={list(classes)}: a class is named twice; name each once")
        table = self._relabelled(classes)
        keep = (table.labels != UNLABELLED) | (self.labels == UNLABELLED)
        return table._rows(keep)

    def merged(self, merge: Mapping[str, str]) -> FaceTable:
        """A copy with some classes merged into others, see `merge_classes`."""
        classes, onto = merge_classes(self.classes, merge, self.source)
        targets = None if self.targets is None else self.targets @ np.eye(len(classes), dtype=np.float32)[onto]
        return replace(self, labels=np.append(onto, UNLABELLED)[self.labels], classes=classes, targets=targets)

    def as_known_by(self, classes: Sequence[str], merge: Mapping[str, str] | None = None) -> FaceTable:
        """A copy with labels that index `classes`, those of a trained network.

        Args:
            classes: names in label order.
            merge: classes that were merged into others in training; those others need not exist here.

        Raises:
            UserError: there are labelled images of another class.
        """
        learned = tuple((merge or {}).get(name, name) for name in self.classes)
        counts = zip(self.classes, learned, self.counts(), strict=True)
        unknown = [name for name, known, n in counts if n and known not in classes]
        if unknown:
            raise UserError(
                f"{self.source} has images of {', '.join(unknown)}, but the model knows "
                f"{', '.join(classes)}: rename its classes, or score a model that knows them"
            )
        return replace(self, classes=learned)._relabelled(classes)

    def _relabelled(self, classes: Sequence[str]) -> FaceTable:
        """A copy with labels that index `classes`; images of other classes become unlabelled, and distributions are
        renormalised."""
        new = np.full(len(self.classes) + 1, UNLABELLED, dtype=np.int64)  # the last one is for UNLABELLED, -1
        for i, name in enumerate(self.classes):
            if name in classes:
                new[i] = list(classes).index(name)
        targets = self.targets
        if targets is not None:
            targets = targets @ np.eye(len(classes) + 1, dtype=np.float32)[new[:-1], :-1]  # row -1 is for UNLABELLED
            targets[new[self.training_labels] == UNLABELLED] = 0
            targets /= np.maximum(targets.sum(1, keepdims=True), np.finfo(np.float32).tiny)
        return replace(self, labels=new[self.labels], classes=tuple(classes), targets=targets)

    def _rows(self, keep: NDArray[np.bool_]) -> FaceTable:
        names = ("images", "labels", "split", "ids", "votes", "targets", "near")
        arrays: dict[str, Any] = {name: a[keep] for name in names if (a := getattr(self, name)) is not None}
        return replace(self, **arrays)


def merge_classes(
    classes: Sequence[str], merge: Mapping[str, str], source: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Merge some of `classes` into others.

    Args:
        classes: names in label order.
        merge: maps the name of a class to the class it is merged into.
        source: the data set they belong to, for messages.

    Returns:
        The remaining names in their order, and for each class its index into them, int64 (C,).

    Raises:
        UserError: a name is not among the classes, or a class is merged into one that is merged itself.
    """
    for old, new in merge.items():
        for name in (old, new):
            if name not in classes:
                raise UserError(f"data.merge: {source} has no class '{name}', only {', '.join(classes)}")
        if new in merge:
            raise UserError(
                f"data.merge: {old} is merged into {new}, which is merged itself: name the final class for both"
            )
    left = tuple(name for name in classes if name not in merge)
    return left, np.array([left.index(merge.get(name, name)) for name in classes], dtype=np.int64)
