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

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.labels import LabelColumn, UsageColumn
from fer_lightning.data.readers.archive import Archive
from fer_lightning.data.readers.flaws import Flaws, noted
from fer_lightning.data.readers.streams import decompressed, map_threaded
from fer_lightning.data.table import SIDE, SPLITS, UNLABELLED, FaceTable
from fer_lightning.errors import UserError, printable, quoted

MAX_LINE = 1 << 20
"""Bytes in the longest line that is read; 2,304 pixels take under 10,000."""

_PIXELS = SIDE * SIDE
_BATCH = 64  # rows parsed together: 0.5 MB of text, so that numpy's temporaries stay in the processor's cache
_SNIFFED = 32  # CSV files whose headers are read where there are many


@dataclass(frozen=True)
class CsvMember:
    """One CSV file with faces.

    Attributes:
        name: the archive's member.
        columns: the header's names, lower-cased and stripped.
    """

    name: str
    columns: tuple[str, ...]

    @property
    def stem(self) -> str:
        """The file's name in lower case up to its first dot."""
        return PurePosixPath(self.name).name.lower().split(".")[0]

    @property
    def folder(self) -> str:
        """The folder inside the archive that contains it."""
        return str(PurePosixPath(self.name).parent)

    def has(self, *columns: str) -> bool:
        """Whether it has all of `columns`."""
        return set(columns) <= set(self.columns)


def choose(archive: Archive, *, sole: bool) -> list[CsvMember] | None:
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
    complete = [m for m in members if m.has("emotion", "usage")]
    if complete:
        return [next((m for m in complete if m.stem == "fer2013"), complete[0])]
    labelled = [m for m in members if m.has("emotion")]
    for train in labelled:
        if train.stem == "train":
            beside = [m for m in members if m.stem == "test" and m.folder == train.folder]
            return [train, *beside[:1]]
    if not labelled:
        raise _missing("emotion", archive, members[0].name, members[0].columns)
    if len(labelled) > 1:
        several = ", ".join(printable(m.name) for m in labelled)
        raise UserError(f"{archive.label} holds several CSV files with faces ({several}): set data.path to one of them")
    return labelled


def read(archive: Archive, members: Sequence[CsvMember], fingerprint: str, flaws: Flaws | None = None) -> FaceTable:
    """The faces of `members`, in their order, which come from `choose`.

    Args:
        archive: where they are.
        members: one file, or train.csv and test.csv.
        fingerprint: of the content.
        flaws: records what is wrong with single rows, so that it is no error.

    Raises:
        UserError: a row is not 2,304 grey levels with a known label and split, and `flaws` is not given; the message
            has its number, 0 for the first after the header. Or the file is no such CSV at all.
    """
    codes: list[int] = []
    splits: list[int] = []
    ids: list[bytes] = []
    labels, usage = LabelColumn(), UsageColumn()

    def pixels() -> Iterator[tuple[str, bytes]]:
        """Of each row, where it is and its pixels column; the other columns go into the lists above."""
        for member in members:
            where = archive.where(member.name)
            column = {name: member.columns.index(name) for name in member.columns}
            default_split = SPLITS.index("test" if member.stem == "test" else "train")
            prefix = "" if member is members[0] else f"{PurePosixPath(member.name).name} "
            before = len(ids)
            for _, stream in archive.members([member.name]):
                for row, fields in enumerate(islice(_records(stream, where), 1, None)):
                    here = f"{where}, row {row}"
                    code, split, field = UNLABELLED, default_split, b""
                    with noted(flaws, len(ids)):
                        if len(fields) != len(member.columns):
                            expected = f"but the header names {len(member.columns)}"
                            raise UserError(f"{here}: {len(fields)} values, {expected}: correct the row")
                        if "usage" in column:
                            split = usage.split(fields[column["usage"]], here)
                        if "emotion" in column:
                            code = labels.code(fields[column["emotion"]], here)
                        field = fields[column["pixels"]]
                    codes.append(code)
                    splits.append(split)
                    ids.append(f"{prefix}row {row}".encode())
                    yield here, field
            if len(ids) == before:
                raise UserError(f"{where} has a header and no rows: the file is truncated; download it again")

    def batches() -> Iterator[tuple[list[tuple[str, bytes]], int]]:
        rows = pixels()
        while batch := list(islice(rows, _BATCH)):
            yield batch, len(ids) - len(batch)

    # glibc returns freed memory to the system and faults it in again for every batch, which takes as long as parsing;
    # freeing one large block raises the size from which on it does so.
    np.empty(16 << 20, dtype=np.uint8)
    images = list(map_threaded(lambda batch: _parse_batch(*batch, flaws), batches()))
    classes, label_of_code = labels.resolve()
    table = FaceTable(
        images=np.concatenate(images).reshape(-1, SIDE, SIDE),
        labels=label_of_code[codes],
        split=np.array(splits, dtype=np.int8),
        ids=np.array(ids),
        classes=classes,
        source=archive.label,
        fingerprint=fingerprint,
    )
    where = archive.where(members[0].name)
    train = table.rows("train")
    if not len(train):
        raise UserError(f"{where} has no training rows: Usage must be Training for images of the training set")
    if not labels.numeric and not table.counts(train).all():
        name = classes[int(table.counts(train).argmin())]
        raise UserError(f"{where}: no training row has the emotion {quoted(name)}, but others do: correct the label")
    return table


def _parse_batch(rows: Sequence[tuple[str, bytes]], first_row: int, flaws: Flaws | None) -> NDArray[np.uint8]:
    """Grey levels of consecutive rows, uint8 (B, 2304), each given by where it is and its pixels column."""
    images = _parse_plain([field for _, field in rows])
    if images is None:
        images = np.zeros((len(rows), _PIXELS), dtype=np.uint8)
        for i, (where, field) in enumerate(rows):
            if flaws is None or first_row + i not in flaws.broken:
                with noted(flaws, first_row + i):
                    images[i] = _parse_row(field, where)
    return images


def _parse_plain(fields: Sequence[bytes]) -> NDArray[np.uint8] | None:
    """Grey levels, uint8 (B, 2304), if every field is 2,304 numbers of 1 to 3 digits with single spaces between them.

    np.fromstring(sep=" "), which takes anything else as well, needs twice the time.
    """
    if any(field.count(b" ") != _PIXELS - 1 for field in fields):
        return None
    text = np.frombuffer(b"  " + b" ".join(fields) + b" ", dtype=np.uint8)
    digit = text - np.uint8(ord("0"))  # wraps round, so that only digits are below 10
    is_digit, is_space = digit < 10, text == ord(" ")
    ends = np.flatnonzero(is_space)[2:]  # the space behind each number
    spans = np.diff(ends, prepend=1)
    if not (is_digit | is_space).all() or spans.min() < 2 or spans.max() > 4:
        return None
    digit *= is_digit
    value = digit[2:].astype(np.uint16)  # at each byte, of a number that would end there: faster than gathering digits
    value += digit[1:-1] * np.uint8(10)
    value += digit[:-2] * is_digit[1:-1] * np.uint16(100)
    value = value[ends - 3]
    return value.astype(np.uint8).reshape(len(fields), _PIXELS) if value.max() <= 255 else None


def _parse_row(field: bytes, where: str) -> list[int]:
    tokens = field.split()
    for token in tokens:
        if not token.isdigit():
            raise UserError(f"{where}: pixel {quoted(token)} is not a number from 0 to 255: correct or remove the row")
        if len(token) > 9 or int(token) > 255:
            raise UserError(f"{where}: pixel {quoted(token)} is not in 0 to 255: correct or remove the row")
    if len(tokens) != _PIXELS:
        raise UserError(
            f"{where}: {len(tokens)} pixels, not {_PIXELS} ({SIDE} by {SIDE}): the file is truncated, or its images "
            "have another size; download it again"
        )
    return [int(token) for token in tokens]


def _records(file: io.BufferedReader, where: str) -> Iterator[list[bytes]]:
    """The fields of each record, the header first; blank lines are skipped, as in pandas."""
    stream = decompressed(file, where)
    lines = iter(partial(stream.readline, MAX_LINE), b"")
    row = -1
    for line in lines:
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
        return tuple(field.removeprefix(codecs.BOM_UTF8).decode().strip().lower() for field in fields)
    except UnicodeDecodeError:
        raise UserError(
            f"{where} begins with {quoted(fields[0])}, which is neither UTF-8 text nor a .zip or .tar: "
            "set data.path to a CSV saved as UTF-8, a folder or an archive"
        ) from None


def _missing(column: str, archive: Archive, name: str, columns: Sequence[str]) -> UserError:
    names = ", ".join(quoted(c) for c in columns[:8]) + (", …" if len(columns) > 8 else "")
    return UserError(
        f"{archive.where(name)} has no column '{column}', only {names}: "
        "FER-2013's fer2013.csv has emotion, pixels and Usage"
    )
