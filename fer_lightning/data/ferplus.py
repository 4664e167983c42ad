"""FER+: votes of ten taggers for each image of FER-2013 (Barsoum et al. 2016, arXiv:1608.01041), and labels from them.

The rules are those of the authors' code (github.com/microsoft/FERPlus, src/ferplus.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.labels import class_name, split_index
from fer_lightning.data.readers.archive import Archive
from fer_lightning.data.readers.streams import decompressed, reading
from fer_lightning.data.table import FER_CLASSES, SPLITS, UNLABELLED, FaceTable, merge_classes
from fer_lightning.errors import UserError, printable, quoted

VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
"""Columns of the file, and of `FaceTable.votes`; NF is "not a face"."""

CLASSES = (*FER_CLASSES, "contempt")
"""The eight classes of FER+, in label order: the first seven are FER-2013's."""

HOW_TO_GET = "get fer2013new.csv from github.com/microsoft/FERPlus"

Target = Literal["majority", "probability", "crossentropy"]

_EMOTIONS = len(CLASSES)
_COLUMNS = [[class_name(name) for name in VOTES].index(name) for name in CLASSES]


def attach(faces: FaceTable, path: str | os.PathLike[str], named: str = "data.votes") -> FaceTable:
    """A copy of `faces` with the votes of the file at `path`, which has a row for each image.

    Args:
        faces: the table of fer2013.csv, complete and in its order.
        path: fer2013new.csv, also compressed.
        named: the option that `path` was given as, for messages.

    Raises:
        UserError: the file does not exist, is invalid, or belongs to other images.
    """
    if not np.strings.startswith(faces.ids, b"row ").all():
        raise UserError(
            f"{named}: {faces.source} does not number its images by the rows of fer2013.csv, as the votes "
            f"of FER+ are: use that CSV as the data, or leave {named} out"
        )
    where = printable(path)
    split, votes = _read(Path(path), where, named)
    if len(votes) != len(faces):
        raise UserError(
            f"{named}: {where} has {len(votes):,} rows and {faces.source} {len(faces):,}: FER+ votes belong "
            "to the complete fer2013.csv, row by row: use that file"
        )
    if (differ := split != faces.split).any():
        row = int(differ.argmax())
        raise UserError(
            f"{named}: {where}, row {row} is of the split '{SPLITS[split[row]]}', and {faces.source}, row {row} "
            f"of '{SPLITS[faces.split[row]]}': FER+ votes belong to fer2013.csv in its original order: use that file"
        )
    return replace(faces, votes=votes)


def relabelled(faces: FaceTable, target: Target, merge: Mapping[str, str] | None = None) -> FaceTable:
    """A copy of `faces` with the classes and labels of FER+ instead of their own.

    Labels are those of `majority` for every target: validation and test images are scored by them. An image without
    one, because too few taggers agree or because they see no emotion or no face, is unlabelled.

    Args:
        faces: a table with votes.
        target: the training target. `majority`: the label. `crossentropy`: the distribution of votes, see
            `distribution`. `probability`: a label drawn from it in each epoch.
        merge: classes whose votes count for another class, see `merge_classes`.

    Raises:
        UserError: `merge` names a class that FER+ does not have.
    """
    assert faces.votes is not None
    classes, onto = merge_classes(CLASSES, merge or {}, "FER+")
    emotions = faces.votes[:, _COLUMNS].astype(np.int64) @ np.eye(len(classes), dtype=np.int64)[onto]
    votes = np.concatenate([emotions, faces.votes[:, _EMOTIONS:]], axis=1)
    return replace(
        faces,
        labels=majority(votes),
        targets=None if target == "majority" else distribution(votes),
        classes=classes,
        source=f"{faces.source} with FER+ labels",
    )


def majority(votes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The emotion with more than half of the votes, where single votes are ignored as outliers.

    Args:
        votes: int64 (N, C + 2): emotions, unknown, not a face.

    Returns:
        int64 (N,), `UNLABELLED` where there is none. Of the real file, 25,060 training, 3,199 PublicTest and 3,153
        PrivateTest images have one.
    """
    votes = _without_outliers(votes)
    winner = votes.argmax(1)
    clear = 2 * votes.max(1) > votes.sum(1)
    return np.where(clear & (winner < votes.shape[1] - 2), winner, UNLABELLED)


def distribution(votes: NDArray[np.int64]) -> NDArray[np.float32]:
    """The shares of the emotions with the most votes, where single votes are ignored as outliers.

    Emotions are added in the order of their votes, ties together, until three quarters of the votes are covered, three
    emotions are included, or unknown or not-a-face has as many votes as the next. An image with half of its votes or
    fewer covered, or with more than three emotions, is left out.

    Args:
        votes: int64 (N, C + 2): emotions, unknown, not a face.

    Returns:
        float32 (N, C), rows with the sum 1; all 0 for an image that is left out. Of the training images of the real
        file 27,956 remain.
    """
    left = _without_outliers(votes)
    total = left.sum(1)
    taken = np.zeros_like(left[:, :-2])
    going = np.ones(len(left), dtype=bool)
    for _ in range(3):
        going &= (4 * taken.sum(1) < 3 * total) & ((taken > 0).sum(1) < 3)
        top = going[:, None] & (left == left.max(1, keepdims=True))
        taken += np.where(top, left, 0)[:, :-2]
        left[top] = 0
        going &= ~top[:, -2:].any(1)
    covered = taken.sum(1)
    valid = (2 * covered > total) & ((taken > 0).sum(1) <= 3)
    shares: NDArray[np.float64] = taken * valid[:, None] / np.maximum(covered, 1)[:, None]
    return shares.astype(np.float32)


def nonface(votes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether most taggers see no face, bool (N,), from votes uint8 (N, 10), see `VOTES`."""
    return np.asarray(2 * votes[:, -1].astype(np.int64) > votes.sum(1, dtype=np.int64))


def _without_outliers(votes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(votes > 1, votes, 0)


def _read(path: Path, where: str, named: str) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """The split of each row, int8 (N,), and its votes, uint8 (N, 10)."""
    import pandas as pd

    with reading(where):
        if not path.exists():
            raise UserError(f"{named} {where} does not exist: {HOW_TO_GET}")
        with Archive(path, where) as archive:
            names = archive.names
            if len(names) != 1:
                raise UserError(f"{named}: {where} holds {len(names)} files: name the one with the votes; {HOW_TO_GET}")
            for name, stream in archive.members(names):  # not by pandas, which would inflate a decompression bomb
                content = decompressed(stream, archive.where(name))
                frame = pd.read_csv(
                    content, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True
                )
    frame.columns = [str(name).strip().lower() for name in frame.columns]
    if missing := [name for name in ("Usage", *VOTES) if name.lower() not in frame]:
        raise UserError(f"{named}: {where} has no column {', '.join(missing)}: {HOW_TO_GET}")
    rows = enumerate(frame["usage"])
    split = np.array([split_index(str(text), f"{where}, row {row}") for row, text in rows], dtype=np.int8)
    columns: Any = frame[[name.lower() for name in VOTES]]
    votes = columns.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~((votes >= 0) & (votes <= 255) & (votes % 1 == 0))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        text = quoted(str(columns.iat[row, column]))
        raise UserError(
            f"{where}, row {row}: {VOTES[column]} {text} is not a number of votes from 0 to 255: correct it"
        )
    return split, votes.astype(np.uint8)
