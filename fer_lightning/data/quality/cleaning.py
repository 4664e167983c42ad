"""Cleaning the training set: removing images with faults, correcting labels.

Validation and test images are never changed, so that scores stay comparable with those of runs without cleaning.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.ferplus import nonface
from fer_lightning.data.protocols import Partition, Rows, need_every_class
from fer_lightning.data.quality.blank import is_blank, is_near_blank
from fer_lightning.data.quality.duplicates import near_duplicates
from fer_lightning.data.table import UNLABELLED, FaceTable
from fer_lightning.errors import UserError, flat

LEFT_OUT = "none"
"""The new label of an image to remove from the training set."""


def drop(
    faces: FaceTable, parts: Partition, faults: Sequence[str], cache_root: Path, given: Rows | None = None
) -> tuple[Partition, str]:
    """`parts` without the training images that have any of `faults`, and a description with their number.

    Duplicates are removed last, among the remaining images, so that one image of each photograph stays: the first with
    a corrected label (`given`), or else the first. An image with several faults counts for the first of them.

    Raises:
        UserError: votes are needed and missing, or a class has no training image left.
    """
    counts = []
    for fault in sorted(faults, key=lambda fault: fault.endswith("duplicates")):
        rows = dropped(faces, parts, fault, cache_root, given)
        counts.append(f"{fault.replace('_', ' ')} {len(rows):,}")
        parts = replace(parts, train=np.setdiff1d(parts.train, rows))
    need_every_class(faces, parts.train, way_out=f"data.drop=[{','.join(faults)}] leaves none; drop fewer faults")
    return parts, f"left out of training: {', '.join(counts)}"


def dropped(faces: FaceTable, parts: Partition, fault: str, cache_root: Path, given: Rows | None = None) -> Rows:
    """The training images with a fault, as row numbers.

    `duplicates` are duplicates of an earlier training image, `near_duplicates` those and near-duplicates of one.
    `conflicts` are all images that count as the same (see `FaceTable.duplicate_groups`) and have different labels;
    `leaks` those that count as the same as a validation or test image. `blank` and `near_blank`: see
    `fer_lightning.data.quality.blank`. `nonface` are images in which most taggers of FER+ see no face.
    """
    train = parts.train
    if fault == "duplicates":
        return _all_but_first(faces.identical, train, given)
    if fault == "near_duplicates":
        return _all_but_first(near_duplicates(faces, cache_root)[0], train, given)
    if fault == "leaks":
        return train[np.isin(faces.duplicate_groups[train], faces.duplicate_groups[np.union1d(parts.val, parts.test)])]
    if fault == "conflicts":
        pairs = np.unique(np.stack([faces.duplicate_groups[train], faces.training_labels[train]]), axis=1)
        group, labels = np.unique(pairs[0], return_counts=True)
        return train[np.isin(faces.duplicate_groups[train], group[labels > 1])]
    if fault == "blank":
        return train[is_blank(faces.images[train])]
    if fault == "near_blank":
        return train[is_near_blank(faces.images[train])]
    assert fault == "nonface", fault
    if faces.votes is None:
        raise UserError("data.drop=[nonface] needs the votes of FER+: set data.votes=fer2013new.csv")
    return train[nonface(faces.votes[train])]


def _all_but_first(group: NDArray[np.int64], rows: Rows, given: Rows | None) -> Rows:
    """The `rows` of each group except one: the first with a given label, or else the first."""
    if given is not None:
        rows = np.concatenate([np.intersect1d(rows, given), np.setdiff1d(rows, given)])
    return np.sort(np.delete(rows, np.unique(group[rows], return_index=True)[1]))


def digest(path: str) -> str:
    """A digest of a file's content.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"data.relabel={path}: {error.strerror}") from error


class Relabelled(NamedTuple):
    """A table and a partition with corrected labels.

    Attributes:
        summary: a description with the number of changes.
        given: the rows with a label from the file, in no particular order, including those that had this label before.
    """

    faces: FaceTable
    parts: Partition
    summary: str
    given: Rows


def relabel(
    faces: FaceTable, parts: Partition, path: str, merge: Mapping[str, str], known_digest: str | None = None
) -> Relabelled:
    """Apply the labels of a CSV to training images and their duplicates.

    Nothing leaks into hold-outs: an image that was not in the training set for lack of a label stays out if an image
    that counts as the same, see `FaceTable.duplicate_groups`, is held out.

    Args:
        faces: the table.
        parts: its partition by the original labels.
        path: a CSV with the columns `image`, an id as in predictions.csv or an audit's findings.csv, and `new_label`: a
            class, "none" to remove the image, or empty. The column `pixel_digest`, if it exists, must
            match the image. Other columns are ignored.
        merge: classes that are merged into others, see `data.merge`.
        known_digest: the digest that the file must have, if any.

    Raises:
        UserError: the file cannot be read or has changed, names an image or class that does not exist or other pixels,
            or gives an image or its duplicates different labels; or a class has no training image left.
    """
    where = f"data.relabel={path}"
    if known_digest is not None and digest(path) != known_digest:
        raise UserError(f"{where}: the file has changed since this run was started; restore it")
    row_of = {name.decode(): row for row, name in enumerate(faces.ids.tolist())}
    label_of = {LEFT_OUT: UNLABELLED} | {name: i for i, name in enumerate(faces.classes)}
    label_of |= {old: label_of[new] for old, new in merge.items()}
    asked: dict[int, tuple[int, int]] = {}
    for line, image, label, known_by in _lines(path, where):
        if not label:
            continue
        if image not in row_of:
            raise UserError(f"{where}, line {line}: {faces.source} has no image '{image}'; correct the row")
        if label not in label_of:
            classes = ", ".join(faces.classes)
            raise UserError(
                f"{where}, line {line}: unknown class '{label}'; use {classes}, or {LEFT_OUT} to remove the image"
            )
        row = row_of[image]
        if known_by not in ("", *faces.pixel_digests(np.array([row]))):
            raise UserError(
                f"{where}, line {line}: '{image}' has other pixels than its digest, so the data has changed: audit "
                "it again, and fill in the new file"
            )
        before, as_before = asked.setdefault(row, (line, label_of[label]))
        if label_of[label] != as_before:
            raise UserError(f"{where}, line {line}: '{image}' has another label in line {before}: leave one empty")

    scored = np.union1d(parts.val, parts.test)
    may_train = set(np.setdiff1d(np.union1d(faces.rows("train"), parts.train), scored).tolist())
    inside = {row: new for row, (_, new) in asked.items() if row in may_train}
    elsewhere = len(asked) - len(inside)
    inside = _with_copies(faces, parts.train, inside, asked, where)
    labelled = np.array([row for row, new in inside.items() if new != UNLABELLED], dtype=np.int64)
    unsafe = _kept_from_training(faces, parts, labelled)
    inside = {row: new for row, new in inside.items() if row not in unsafe}
    changed = {row: new for row, new in inside.items() if new != faces.training_labels[row]}
    rows, labels = (np.array(list(values), dtype=np.int64) for values in (inside, inside.values()))
    faces = faces.with_labels(rows, labels)
    train = np.union1d(parts.train, rows)
    train = train[faces.training_labels[train] != UNLABELLED]
    need_every_class(faces, train, way_out=f"{where} leaves none")
    left_out = sum(new == UNLABELLED for new in changed.values())
    summary = f"{len(changed) - left_out:,} training images relabelled, {left_out:,} left out"
    if unsafe:
        summary += f"; {len(unsafe):,} excluded as duplicates of held-out images"
    if elsewhere:
        summary += f"; {elsewhere:,} validation or test images keep their labels"
    return Relabelled(faces, replace(parts, train=train), summary, rows[labels != UNLABELLED])


def _with_copies(
    faces: FaceTable, train: Rows, wanted: Mapping[int, int], asked: Mapping[int, tuple[int, int]], where: str
) -> dict[int, int]:
    """New labels by row, including those for duplicates in `train` of images that get a class."""
    of_pixels: dict[int, int] = {}
    for row, new in wanted.items():
        if new == UNLABELLED:
            continue
        first = of_pixels.setdefault(int(faces.identical[row]), row)
        if wanted[first] != new:
            line, before = asked[row][0], asked[first][0]
            raise UserError(
                f"{where}, line {line}: '{faces.ids[row].decode()}' is a duplicate of the image of line {before}, "
                f"but has another label: give both the same label, or one of them {LEFT_OUT}"
            )
    copies = train[np.isin(faces.identical[train], list(of_pixels))]
    return {row: wanted[of_pixels[int(faces.identical[row])]] for row in copies.tolist()} | dict(wanted)


def _kept_from_training(faces: FaceTable, parts: Partition, rows: Rows) -> set[int]:
    """Those of `rows` outside the training set that count as the same as an image held out of the same splits."""
    scored = np.union1d(parts.val, parts.test)
    held_out = scored[np.isin(faces.split[scored], faces.split[parts.train])]
    entering = np.setdiff1d(rows, parts.train)
    return set(entering[np.isin(faces.duplicate_groups[entering], faces.duplicate_groups[held_out])].tolist())


def _lines(path: str, where: str) -> Iterator[tuple[int, str, str, str]]:
    """Line number, image, new label and pixel digest of each row; the digest is empty if there is no such column."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            for column in ("image", "new_label"):
                if column not in (rows.fieldnames or []):
                    has = ", ".join(rows.fieldnames or []) or "nothing"
                    raise UserError(f"{where}: no column '{column}', only {has}; add it")
            for row in rows:
                if None in row or None in row.values():
                    raise UserError(
                        f"{where}, line {rows.line_num}: the number of values differs from the header: correct the line"
                    )
                yield rows.line_num, row["image"], row["new_label"].strip(), row.get("pixel_digest", "").strip()
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{where}: {flat(error)}") from error
