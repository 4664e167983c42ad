"""Protocols: training, validation and test images."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.seeding import stream_rng
from fer_lightning.data.table import UNLABELLED, FaceTable
from fer_lightning.errors import UserError

log = logging.getLogger(__name__)

Rows = NDArray[np.int64]
ProtocolName = Literal["kaggle", "report", "kfold"]


@dataclass(frozen=True)
class Partition:
    """Row numbers into a FaceTable, each ascending and disjoint from the others.

    Attributes:
        train: images with a label or a distribution to learn, see `FaceTable.training_labels`.
        val: labelled images.
        test: images to score; unlabelled ones among them are predicted, but not scored.
        clean: bool (N,), one for each image of the table: false where it, or an image that counts as the same (see
            `FaceTable.duplicate_groups`), is among those that `seen` returns.
    """

    train: Rows
    val: Rows
    test: Rows
    clean: NDArray[np.bool_]

    def digests(self, faces: FaceTable) -> dict[str, str]:
        """Digests of the images and labels of each part, which change if anything in it does."""
        digests = {}
        for name in ("train", "val", "test"):
            rows: Rows = getattr(self, name)
            content = faces.digests[rows].tobytes() + faces.labels[rows].tobytes()
            content += b"" if faces.targets is None else faces.targets[rows].tobytes()
            digests[name] = hashlib.blake2b(content, digest_size=16).hexdigest()
        return digests


def partition(
    faces: FaceTable,
    name: ProtocolName = "kaggle",
    *,
    holdout: float = 0.1,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
) -> Partition:
    """Divide a table by a named protocol.

    `kaggle` is Training / PublicTest / PrivateTest. `report` is Training less a hold-out / that hold-out / PublicTest
    and PrivateTest together, the student report's 7,178. `kfold` divides Training and PublicTest into `folds` parts,
    validates on part number `fold` and tests on PrivateTest. Where a source has no validation or labelled test images
    of its own, a hold-out of its training images replaces them.

    Hold-outs and folds are stratified by class; images that count as the same, see `FaceTable.duplicate_groups`, stay
    together.

    Args:
        faces: the table.
        name: the protocol.
        holdout: fraction of the training images that a hold-out takes.
        folds: number of parts, for `kfold`.
        fold: the part to validate on, from 0.
        seed: of the hold-out or folds; runs with the same seed have the same ones.

    Raises:
        UserError: an option out of range, no training images, or a class without a training image.
    """
    if not 0 < holdout < 0.5:
        raise UserError(f"protocol.holdout={holdout}: must be above 0 and below 0.5")
    if folds < 2 or not 0 <= fold < folds:
        raise UserError(
            f"protocol.fold={fold} of protocol.folds={folds}: folds are numbered from 0, and there must be 2 or more"
        )

    labelled = faces.labels != UNLABELLED
    pool = faces.rows(*_pool(name))
    pool = pool[faces.training_labels[pool] != UNLABELLED]
    if len(pool) == 0:
        raise UserError(f"{faces.source}: no training images; add a folder train/<class>/ or rows with Usage=Training")

    test = faces.rows(*(("public", "private", "test") if name == "report" else ("private", "test")))
    unlabelled_test = test[~labelled[test]]
    test = test[labelled[test]]
    if len(test) == 0:
        log.warning(
            "%s has no labelled test images: %g of its training images are held out instead", faces.source, holdout
        )
        pool, test = _held_out(faces, pool, holdout, "test hold-out", seed)

    own_val = faces.rows("public", "val")
    own_val = own_val[labelled[own_val]]
    if name == "kfold":
        position = _positions(faces, pool, "folds", seed)
        in_fold = (position * folds).astype(np.int64) == fold
        train, val = pool[~in_fold], pool[in_fold]
    elif name == "kaggle" and len(own_val):
        train, val = pool, own_val
    else:
        train, val = _held_out(faces, pool, holdout, "validation hold-out", seed)
    val = val[labelled[val]]

    need_every_class(faces, train)
    for what, rows in (("validation", val), ("test", test)):
        if not len(rows):
            key = "folds" if what == "validation" and name == "kfold" else "holdout"
            value, remedy = (folds, "lower it") if key == "folds" else (holdout, "raise it")
            raise UserError(
                f"{faces.source}: {len(pool)} training images are too few for {what} images by "
                f"protocol.{key}={value:g}; {remedy}, or add {what} images"
            )

    test = np.union1d(test, unlabelled_test)
    return Partition(
        train, val, test, clean=~np.isin(faces.duplicate_groups, faces.duplicate_groups[seen(faces, name, test)])
    )


def seen(faces: FaceTable, name: ProtocolName, test: Rows) -> Rows:
    """The images that runs of a protocol may train on, without `test`.

    They include those held out for validation, those of other folds and those removed by cleaning, so that the
    same test images are clean in every run.
    """
    return np.setdiff1d(faces.rows(*_pool(name)), test)


def _pool(name: ProtocolName) -> tuple[str, ...]:
    return ("train", "val", "public") if name == "kfold" else ("train",)


def need_every_class(faces: FaceTable, train: Rows, remedy: str | None = None) -> None:
    """Raise UserError with the remedy `remedy` if a class has no image among the rows `train`."""
    if len(faces.classes) < 2:
        raise UserError(
            f"{faces.source}: {' '.join(faces.classes) or 'none'} is the only class; add images of other classes, or "
            "name two or more in data.classes"
        )
    empty = [c for c, n in zip(faces.classes, faces.counts(train, training=True), strict=True) if n == 0]
    if empty:
        remaining = ",".join(c for c in faces.classes if c not in empty)
        remedy = remedy or f"add some, or name the classes to keep with data.classes=[{remaining}]"
        raise UserError(f"{faces.source}: no training image of {', '.join(empty)}; {remedy}")


def _held_out(faces: FaceTable, rows: Rows, fraction: float, stream: str, seed: int) -> tuple[Rows, Rows]:
    """`rows` without a hold-out, and the hold-out."""
    held = _positions(faces, rows, stream, seed) < fraction
    return rows[~held], rows[held]


def _positions(faces: FaceTable, rows: Rows, stream: str, seed: int) -> NDArray[np.float64]:
    """A position in [0, 1) for each row: any interval of length f contains about a fraction f of each class, and images
    that count as the same have the same position.

    Of those with different labels, the label of the first counts.
    """
    _, first, group = np.unique(faces.duplicate_groups[rows], return_index=True, return_inverse=True)
    size = np.bincount(group)
    label = faces.training_labels[rows[first]]
    order = stream_rng(stream, seed).permutation(len(size))
    position = np.empty(len(size))
    for c in range(len(faces.classes)):
        members = order[label[order] == c]
        ends = np.cumsum(size[members])
        position[members] = (ends - size[members] / 2) / ends[-1] if len(members) else 0
    return position[group]
