"""CSV files with the columns emotion, pixels and Usage, in any order, as FER-2013 was published."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.labels import class_order, decoded, emotion_name, is_number, split_index
from fer_lightning.data.readers.archive import SPLIT_OF, Archive, stem
from fer_lightning.data.readers.flaws import Flaws, noted
from fer_lightning.data.readers.streams import decompressed
from fer_lightning.data.table import FER_CLASSES, SIDE, SPLITS, UNLABELLED, FaceTable
from fer_lightning.errors import UserError, printable, quoted

MAX_LINE = 1 << 20
"""Bytes in the longest line that is read; 2,304 pixels take under 10,000."""

MAX_CLASSES = 1000
"""A column with more different names than this does not contain classes."""

_PIXELS = SIDE * SIDE
_SNIFFED = 32  # CSV files whose headers are read where there are many


class CsvMember(NamedTuple):
    """One CSV file with faces: the archive's member, and the names in its header, lower-cased and stripped."""

    name: str
    columns: tuple[str, ...]

    @property
    def stem(self) -> str:
        return stem(self.name)


def find_layout(archive: Archive, *, sole: bool) -> Layout | None:
    """The CSV files of `archive` that make one table; None where no CSV has pixels.

    They are, of those with pixels and emotion: one that also has Usage, or train.csv with test.csv beside it, or the
    only one there is.

    Args:
        archive: where to look.
        sole: whether the archive can be read in no other way, so that a CSV which cannot be used is an error.

    Raises:
        UserError: a column is missing, several files could be meant, or (if `sole`) one is damaged or no CSV.
    """
    names = archive.names
    if not archive.is_single:
        names = [n for n in names if n.lower().endswith((".csv", ".csv.gz", ".csv.xz", ".csv.bz2"))]
        names = sorted(names, key=lambda n: (n.count("/"), n))[:_SNIFFED]
    columns: dict[str, tuple[str, ...]] = {}
    problems: list[UserError] = []
    for name, stream in archive.members(names) if names else ():
        try:
            columns[name] = _header(stream, archive.where(name))
        except UserError as error:
            problems.append(error)
    members = [CsvMember(name, columns[name]) for name in names if "pixels" in columns.get(name, ())]
    if not members:
        if sole and problems:
            raise problems[0]
        if sole and len(names) == 1:
            raise _missing("pixels", archive, names[0], columns[names[0]])
        return None
    labelled = [m for m in members if "emotion" in m.columns]
    complete = [m for m in labelled if "usage" in m.columns]
    if complete:
        return Layout([next((m for m in complete if m.stem == "fer2013"), complete[0])])
    for train in labelled:
        if train.stem == "train":
            folder = PurePosixPath(train.name).parent
            beside = [m for m in members if PurePosixPath(m.name).parent == folder]
            return Layout([train, *(m for split in ("val", "test") for m in beside if SPLIT_OF.get(m.stem) == split)])
    if not labelled:
        raise _missing("emotion", archive, members[0].name, members[0].columns)
    if len(labelled) > 1:
        several = ", ".join(printable(m.name) for m in labelled)
        raise UserError(f"{archive.label} holds several CSV files with faces ({several}): set data.path to one of them")
    return Layout(labelled)


@dataclass(frozen=True)
class Layout:
    """One CSV file with all faces, or train.csv and, beside it, val.csv or validation.csv, and test.csv."""

    members: list[CsvMember]

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    def read(self, archive: Archive, fingerprint: str, flaws: Flaws | None = None) -> FaceTable:
        """The faces in the order of their rows.

        Args:
            archive: where they are.
            fingerprint: of the content.
            flaws: records what is wrong with single rows, so that it is no error.

        Raises:
            UserError: a row is not 2,304 grey levels with a known label and split, and `flaws` is not given; the
                message has its number, 0 for the first after the header. Or the file is no such CSV at all.
        """
        pixels = bytearray()
        emotions: list[str] = []  # class names, empty for an image without a label
        splits: list[int] = []
        ids: list[bytes] = []
        numeric: bool | None = None  # whether emotions are numbers, as in the first row that has a valid one
        for member in self.members:
            where = archive.where(member.name)
            default_split = SPLITS.index(SPLIT_OF.get(member.stem, "train"))
            prefix = "" if member is self.members[0] else f"{PurePosixPath(member.name).name} "
            before = len(ids)
            for _, stream in archive.members([member.name]):
                for row, fields in enumerate(islice(_records(stream, where), 1, None)):
                    here = f"{where}, row {row}"
                    emotion, split, levels = "", default_split, bytes(_PIXELS)
                    with noted(flaws, len(ids)):
                        if len(fields) != len(member.columns):
                            expected = f"but the header names {len(member.columns)}"
                            raise UserError(f"{here}: {len(fields)} values, {expected}: correct the row")
                        values = dict(zip(member.columns, fields, strict=True))
                        if "usage" in values:
                            split = split_index(decoded(values["usage"], here), here)
                        if "emotion" in values:
                            text = decoded(values["emotion"], here)
                            as_number = is_number(text) if numeric is None else numeric
                            emotion = emotion_name(text, here, numeric=as_number)
                            numeric = as_number
                        levels = _grey_levels(values["pixels"], here)
                    pixels += levels
                    emotions.append(emotion)
                    splits.append(split)
                    ids.append(f"{prefix}row {row}".encode())
            if len(ids) == before:
                raise UserError(f"{where} has a header and no rows: the file is truncated; download it again")
        classes = class_order({*emotions} - {""}) if numeric is False else FER_CLASSES
        if len(classes) > MAX_CLASSES:
            raise UserError(f"{where}: more than {MAX_CLASSES} different emotions: is this column the class?")
        label_of = {name: label for label, name in enumerate(classes)} | {"": UNLABELLED}
        return FaceTable(
            images=np.frombuffer(pixels, dtype=np.uint8).reshape(-1, SIDE, SIDE),
            labels=np.array([label_of[emotion] for emotion in emotions], dtype=np.int64),
            split=np.array(splits, dtype=np.int8),
            ids=np.array(ids),
            classes=classes,
            source=archive.label,
            fingerprint=fingerprint,
        )


def _grey_levels(field: bytes, where: str) -> bytes:
    """The 2,304 numbers of a pixels column."""
    if not field.translate(None, b"0123456789 \t\r\n"):  # without signs, points or other text, which fromstring accepts
        levels: NDArray[np.int64] = np.fromstring(field, dtype=np.int64, sep=" ")
        if len(levels) == _PIXELS and levels.max() <= 255:  # a number beyond 64 bits becomes the largest one
            return levels.astype(np.uint8).tobytes()
    tokens = field.split()
    for token in tokens:
        if not token.isdigit():
            raise UserError(f"{where}: pixel {quoted(token)} is not a number from 0 to 255: correct or remove the row")
        if len(token) > 9 or int(token) > 255:
            raise UserError(f"{where}: pixel {quoted(token)} is not in 0 to 255: correct or remove the row")
    raise UserError(
        f"{where}: {len(tokens)} pixels, not {_PIXELS} ({SIDE} by {SIDE}): the file is truncated, or its images "
        "have another size; download it again"
    )


def _records(file: io.BufferedReader, where: str) -> Iterator[list[bytes]]:
    """The fields of each record, the header first; blank lines are skipped, as in pandas."""
    stream = decompressed(file, where)
    lines = iter(partial(stream.readline, MAX_LINE), b"")
    row = -1
    for line in lines:
        if row < 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        here = f"{where}, " + (f"row {row}" if row >= 0 else "header")
        if len(line) == MAX_LINE:
            raise UserError(f"{here} is longer than {MAX_LINE:,} bytes: this is no CSV of faces")
        if line.isspace():
            continue
        if b'"' in line:  # the csv module takes the lines that it needs; it limits fields to 131,072 bytes
            text = (part.decode("latin-1") for part in chain([line], lines))  # any bytes there and back
            try:
                fields = next(csv.reader(text, skipinitialspace=True, strict=True))
            except csv.Error as error:
                raise UserError(
                    f"{here} is not a valid CSV row ({error}): correct its quotes, or close one that is left open"
                ) from error
            yield [field.encode("latin-1") for field in fields]
        else:
            yield line.rstrip(b"\r\n").split(b",")
        row += 1


def _header(stream: io.BufferedReader, where: str) -> tuple[str, ...]:
    """Column names, lower-cased and stripped."""
    fields = next(_records(stream, where), None)
    if fields is None:
        raise UserError(f"{where} is empty: download it again")
    try:
        return tuple(field.decode().strip().lower() for field in fields)
    except UnicodeDecodeError:
        raise UserError(
            f"{where} begins with {quoted(fields[0])}, which is neither UTF-8 text nor a .zip or .tar: "
            "set data.path to a CSV saved as UTF-8, a folder or an archive"
        ) from None


def _missing(column: str, archive: Archive, name: str, columns: Sequence[str]) -> UserError:
    names = ", ".join(quoted(c) for c in columns[:8]) + (", …" if len(columns) > 8 else "")
    return UserError(
        f"{archive.where(name)} has no column '{column}', only {names}: "
        "FER-2013's fer2013.csv has emotion, pixels and Usage. A list of image files is not read: put the images, or "
        "links to them, into train/<class>/ and test/<class>/, and name that folder"
    )
