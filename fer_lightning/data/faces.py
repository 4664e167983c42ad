"""FaceTable: the one form that every source of faces is turned into."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
"""Where a source says an image belongs; `FaceTable.split` holds indices into this tuple.

`public` and `private` are Kaggle's PublicTest and PrivateTest; `test` is a test set that is not divided so.
"""


@dataclass(frozen=True)
class FaceTable:
    """Faces with what is known of each.

    Attributes:
        images: uint8 (N, 48, 48), grey, often a read-only memory map.
        labels: int64 (N,), indices into `classes`, or `UNLABELLED`.
        split: int8 (N,), indices into `SPLITS`.
        ids: bytes (N,), UTF-8: the file inside a folder or archive, or "row 17" of a CSV (row 0 follows the header).
        classes: class names in label order.
        source: what the user named, for messages and reports.
        fingerprint: hex digest of the content the table was read from.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    split: NDArray[np.int8]
    ids: NDArray[np.bytes_]
    classes: tuple[str, ...]
    source: str
    fingerprint: str

    def __post_init__(self) -> None:
        n = len(self.images)
        assert self.images.shape == (n, SIDE, SIDE) and self.images.dtype == np.uint8
        assert self.labels.shape == self.split.shape == self.ids.shape == (n,)
        assert self.labels.dtype == np.int64 and self.split.dtype == np.int8 and self.ids.dtype.kind == "S"

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Row numbers of the images in any of `splits`, ascending: int64 (M,)."""
        return np.flatnonzero(np.isin(self.split, [SPLITS.index(s) for s in splits]))

    def counts(self, rows: NDArray[Any] | None = None) -> NDArray[np.int64]:
        """Labelled images per class, int64 (C,), of all rows or of `rows`."""
        labels = self.labels if rows is None else self.labels[rows]
        return np.bincount(labels[labels != UNLABELLED], minlength=len(self.classes))

    @cached_property
    def digests(self) -> NDArray[np.void]:
        """A 16-byte digest of each image's pixels, (N,): equal exactly where the pixels are."""
        images = np.ascontiguousarray(self.images).reshape(len(self), SIDE * SIDE)
        return np.array([hashlib.blake2b(row.data, digest_size=16).digest() for row in images], dtype="V16")

    @cached_property
    def twins(self) -> NDArray[np.int64]:
        """Group number of each image, int64 (N,): two rows share one exactly when their pixels are identical."""
        return np.unique(self.digests, return_inverse=True)[1].astype(np.int64)

    def only(self, classes: Sequence[str]) -> FaceTable:
        """The table with just `classes`, in that order; unlabelled images stay.

        Raises:
            UserError: a name is not among the table's classes, or is given twice.
        """
        for name in classes:
            if name not in self.classes:
                raise UserError(f"data.classes: {self.source} has no class '{name}', only {', '.join(self.classes)}")
        if len(set(classes)) != len(classes):
            raise UserError(f"data.classes: a class is named twice in {list(classes)}")
        table = self._relabelled(classes)
        keep = (table.labels != UNLABELLED) | (self.labels == UNLABELLED)
        return table._rows(keep)

    def as_known_by(self, classes: Sequence[str]) -> FaceTable:
        """The same images with labels that count in `classes`, those a network was trained on.

        Raises:
            UserError: labelled images are of a class that is not among them.
        """
        strange = [name for name, n in zip(self.classes, self.counts(), strict=True) if n and name not in classes]
        if strange:
            raise UserError(
                f"{self.source} has images of {', '.join(strange)}; the run knows only {', '.join(classes)}"
            )
        return self._relabelled(classes)

    def _relabelled(self, classes: Sequence[str]) -> FaceTable:
        """Labels that count in `classes`; images of other classes become unlabelled."""
        new = np.full(len(self.classes) + 1, UNLABELLED, dtype=np.int64)  # the extra last one serves UNLABELLED, -1
        for i, name in enumerate(self.classes):
            if name in classes:
                new[i] = list(classes).index(name)
        return replace(self, labels=new[self.labels], classes=tuple(classes))

    def _rows(self, keep: NDArray[np.bool_]) -> FaceTable:
        return replace(
            self, images=self.images[keep], labels=self.labels[keep], split=self.split[keep], ids=self.ids[keep]
        )
