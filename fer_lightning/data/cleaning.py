"""Acting on faults of the training images: leaving some out, giving others another label.

Validation and test images are never touched, so that scores stay comparable with those of runs that did not clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fer_lightning.data.faces import UNLABELLED, FaceTable
from fer_lightning.data.ferplus import nonface
from fer_lightning.data.protocols import Partition, Rows, need_every_class
from fer_lightning.data.twins import BLANK, near_twins
from fer_lightning.errors import UserError


def drop(faces: FaceTable, parts: Partition, faults: Sequence[str], cache_root: Path) -> tuple[Partition, str]:
    """`parts` less the training images that have any of `faults`, and how many those are, in words.

    An image with several counts for the first of them.

    Raises:
        UserError: votes are needed and not there, or a class has no training image left.
    """
    kept, counts = parts.train, []
    for fault in faults:
        left = np.setdiff1d(kept, dropped(faces, parts, fault, cache_root))
        counts.append(f"{fault.replace('_', ' ')} {len(kept) - len(left):,}")
        kept = left
    need_every_class(faces, kept, way_out=f"data.drop=[{','.join(faults)}] leaves none: name fewer faults")
    return replace(parts, train=kept), f"left out of training: {', '.join(counts)}"


def dropped(faces: FaceTable, parts: Partition, fault: str, cache_root: Path) -> Rows:
    """The training images with a fault, as row numbers.

    `duplicates` are images that are pixel for pixel the same as an earlier training image; `near_duplicates` those that
    show the same photograph as an earlier one. `conflicts` are those whose twins in training have another label, all of
    them; `leaks` those with a twin among the validation or test images; twins are what `data.twins` says. `blank` are
    images that show nothing; `nonface` those that FER+ voters found not to show a face.
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
        blank: NDArray[np.bool_] = faces.images[train].reshape(len(train), -1).std(1) < BLANK
        return train[blank]
    assert fault == "nonface", fault
    if faces.votes is None:
        raise UserError("data.drop=[nonface] goes by the votes of FER+: name them with data.votes=fer2013new.csv")
    return train[nonface(faces.votes[train])]


def _all_but_first(group: NDArray[np.int64], rows: Rows) -> Rows:
    return np.delete(rows, np.unique(group[rows], return_index=True)[1])


def relabel(faces: FaceTable, parts: Partition, path: Path) -> tuple[FaceTable, Partition, str]:
    """Training images with the labels that a CSV gives them.

    Args:
        faces: the table.
        parts: its partition, made by the labels as they were.
        path: a CSV with the columns `image`, an id as in predictions.csv or an audit's findings.csv, and `label`, a
            class, or nothing for an image to leave out; further columns are not looked at.

    Returns:
        The table, the partition without images left out, and how many labels changed, in words.

    Raises:
        UserError: the file cannot be read, names an image or class that is not there, or an image twice with different
            labels; or a class has no training image left.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"data.relabel={path}: {' '.join(str(error).split())}") from error
    missing = [column for column in ("image", "label") if column not in table]
    if missing:
        raise UserError(f"data.relabel={path}: no column '{missing[0]}'; it has {', '.join(map(str, table.columns))}")
    row_of = {name.decode(): row for row, name in enumerate(faces.ids.tolist())}
    label_of = {name: i for i, name in enumerate(faces.classes)} | {"": UNLABELLED}
    asked: dict[int, tuple[int, int]] = {}
    for line, (image, label) in enumerate(zip(table["image"], table["label"], strict=True), start=2):
        where = f"data.relabel={path}, line {line}"
        if image not in row_of:
            raise UserError(f"{where}: {faces.source} has no image '{image}'")
        if label not in label_of:
            raise UserError(f"{where}: no class '{label}'; there are {', '.join(faces.classes)}")
        row, new = row_of[image], label_of[label]
        before, new_before = asked.setdefault(row, (line, new))
        if new != new_before:
            raise UserError(f"{where}: '{image}' has another label in line {before}; leave one of them out")

    trained = np.isin(np.arange(len(faces)), parts.train)
    changed = [row for row, (_, new) in asked.items() if trained[row] and new != faces.training_labels[row]]
    elsewhere = sum(not trained[row] and new != faces.labels[row] for row, (_, new) in asked.items())
    faces = faces.with_labels(np.array(changed, dtype=np.int64), np.array([asked[row][1] for row in changed], np.int64))
    train = parts.train[faces.training_labels[parts.train] != UNLABELLED]
    need_every_class(faces, train, way_out=f"data.relabel={path} leaves none")
    out = len(parts.train) - len(train)
    words = f"{len(changed) - out:,} training images relabelled" + (f", {out:,} left out" if out else "")
    if elsewhere:
        words += f"; {elsewhere:,} validation or test images keep their labels"
    return faces, replace(parts, train=train), words
