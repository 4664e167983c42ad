"""Acting on faults of the training images: leaving some out, giving others another label.

Validation and test images are never touched, so that scores stay comparable with those of runs that did not clean.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.blank import is_blank, is_near_blank
from fer_lightning.data.faces import UNLABELLED, FaceTable
from fer_lightning.data.ferplus import nonface
from fer_lightning.data.protocols import Partition, Rows, need_every_class
from fer_lightning.data.twins import near_twins
from fer_lightning.errors import UserError

LEFT_OUT = "none"
"""The new label of an image that is not to be trained on."""


def drop(faces: FaceTable, parts: Partition, faults: Sequence[str], cache_root: Path) -> tuple[Partition, str]:
    """`parts` less the training images that have any of `faults`, and how many those are, in words.

    Copies are looked for last, among what the others leave: of each photograph that may stay one does. An image with
    several faults counts for the first of them.

    Raises:
        UserError: votes are needed and not there, or a class has no training image left.
    """
    counts = []
    for fault in sorted(faults, key=lambda fault: fault.endswith("duplicates")):
        rows = dropped(faces, parts, fault, cache_root)
        counts.append(f"{fault.replace('_', ' ')} {len(rows):,}")
        parts = replace(parts, train=np.setdiff1d(parts.train, rows))
    need_every_class(faces, parts.train, way_out=f"data.drop=[{','.join(faults)}] leaves none: name fewer faults")
    return parts, f"left out of training: {', '.join(counts)}"


def dropped(faces: FaceTable, parts: Partition, fault: str, cache_root: Path) -> Rows:
    """The training images with a fault, as row numbers.

    `duplicates` are images that are pixel for pixel the same as an earlier training image; `near_duplicates` those that
    show the same photograph as an earlier one. `conflicts` are those whose twins in training have another label, all of
    them; `leaks` those with a twin among the validation or test images; twins are what `data.twins` says. `blank` are
    images that show nothing, `near_blank` those that show hardly more; `nonface` those that FER+ voters found not to
    show a face.
    """
    train = parts.train
    if fault == "duplicates":
        return _all_but_first(faces.identical, train)
    if fault == "near_duplicates":
        return _all_but_first(near_twins(faces, cache_root)[0], train)
    if fault == "leaks":
        return train[np.isin(faces.twins[train], faces.twins[np.union1d(parts.val, parts.test)])]
    if fault == "conflicts":
        pairs = np.unique(np.stack([faces.twins[train], faces.training_labels[train]]), axis=1)
        group, labels = np.unique(pairs[0], return_counts=True)
        return train[np.isin(faces.twins[train], group[labels > 1])]
    if fault == "blank":
        return train[is_blank(faces.images[train])]
    if fault == "near_blank":
        return train[is_near_blank(faces.images[train])]
    assert fault == "nonface", fault
    if faces.votes is None:
        raise UserError("data.drop=[nonface] goes by the votes of FER+: name them with data.votes=fer2013new.csv")
    return train[nonface(faces.votes[train])]


def _all_but_first(group: NDArray[np.int64], rows: Rows) -> Rows:
    return np.delete(rows, np.unique(group[rows], return_index=True)[1])


def digest(path: str) -> str:
    """A digest of a file's content.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"data.relabel={path}: {error.strerror}") from error


def relabel(
    faces: FaceTable, parts: Partition, path: str, merge: Mapping[str, str], known_digest: str | None = None
) -> tuple[FaceTable, Partition, str]:
    """Training images with the labels that a CSV gives them.

    Args:
        faces: the table.
        parts: its partition, made by the labels as they were.
        path: a CSV with the columns `image`, an id as in predictions.csv or an audit's findings.csv, and `new_label`: a
            class, "none" for an image to leave out, or nothing for one to leave as it is. Other columns are not looked
            at.
        merge: classes that were taken for others, see `data.merge`.
        known_digest: of the content that the file has to have.

    Returns:
        The table, the partition, and how many labels changed, in words.

    Raises:
        UserError: the file cannot be read or has changed, names an image or class that is not there, or an image twice
            with different labels; or a class has no training image left.
    """
    where = f"data.relabel={path}"
    if known_digest is not None and digest(path) != known_digest:
        raise UserError(f"{where}: the file is not the one this run was started with; bring that one back")
    row_of = {name.decode(): row for row, name in enumerate(faces.ids.tolist())}
    label_of = {LEFT_OUT: UNLABELLED} | {name: i for i, name in enumerate(faces.classes)}
    label_of |= {old: label_of[new] for old, new in merge.items()}
    asked: dict[int, tuple[int, int]] = {}
    for line, image, label in _lines(path, where):
        if not label:
            continue
        if image not in row_of:
            raise UserError(f"{where}, line {line}: {faces.source} has no image '{image}'")
        if label not in label_of:
            classes = ", ".join(faces.classes)
            raise UserError(
                f"{where}, line {line}: no class '{label}'; there are {classes}, or {LEFT_OUT} to leave out"
            )
        before, as_before = asked.setdefault(row_of[image], (line, label_of[label]))
        if label_of[label] != as_before:
            raise UserError(f"{where}, line {line}: '{image}' gets another label in line {before}: leave one empty")

    scored = np.union1d(parts.val, parts.test)
    may_train = set(np.setdiff1d(np.union1d(faces.rows("train"), parts.train), scored).tolist())
    inside = {row: new for row, (_, new) in asked.items() if row in may_train}
    changed = {row: new for row, new in inside.items() if new != faces.training_labels[row]}
    rows = np.array(list(changed), dtype=np.int64)
    faces = faces.with_labels(rows, np.array(list(changed.values()), dtype=np.int64))
    train = np.union1d(parts.train, rows)
    train = train[faces.training_labels[train] != UNLABELLED]
    need_every_class(faces, train, way_out=f"{where} leaves none")
    left_out = sum(new == UNLABELLED for new in changed.values())
    words = f"{len(changed) - left_out:,} training images relabelled, {left_out:,} left out"
    if len(inside) < len(asked):
        words += f"; {len(asked) - len(inside):,} validation or test images keep their labels"
    return faces, replace(parts, train=train), words


def _lines(path: str, where: str) -> Iterator[tuple[int, str, str]]:
    """Line number, image and new label of each row."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            for column in ("image", "new_label"):
                if column not in (rows.fieldnames or []):
                    has = ", ".join(rows.fieldnames or []) or "nothing"
                    raise UserError(f"{where}: no column '{column}'; it has {has}")
            for row in rows:
                if None in row or None in row.values():
                    raise UserError(
                        f"{where}, line {rows.line_num}: not as many values as the header names: correct it"
                    )
                yield rows.line_num, row["image"], row["new_label"].strip()
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
