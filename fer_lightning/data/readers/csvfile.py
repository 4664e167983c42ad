"""CSV files with the columns emotion, pixels and Usage, in any order, as FER-2013 was published."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.labels import LabelColumn, UsageColumn
from fer_lightning.data.readers.flaws import Flaws, noted
from fer_lightning.data.readers.members import Archive
from fer_lightning.data.readers.pixels import parse_pixels
from fer_lightning.data.readers.streams import found, overlapped, shown, unpacked
from fer_lightning.data.table import SIDE, SPLITS, UNLABELLED, FaceTable
from fer_lightning.errors import UserError

MAX_LINE = 1 << 20
"""Bytes in the longest row that is read; 2,304 pixels take under 10,000."""

_BATCH = 64  # rows parsed at once: 0.5 MB of text, so that numpy's temporaries stay in the processor's cache
_SNIFFED = 32  # CSV files that are looked into where there are many


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
        """The folder it lies in, inside the archive."""
        return str(PurePosixPath(self.name).parent)

    def has(self, *columns: str) -> bool:
        """Whether every one of `columns` is there."""
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
    whole = [m for m in members if m.has("emotion", "usage")]
    if whole:
        return [next((m for m in whole if m.stem == "fer2013"), whole[0])]
    labelled = [m for m in members if m.has("emotion")]
    for train in labelled:
        if train.stem == "train":
            beside = [m for m in members if m.stem == "test" and m.folder == train.folder]
            return [train, *beside[:1]]
    if not labelled:
        raise _missing("emotion", archive, members[0].name, members[0].columns)
    if len(labelled) > 1:
        several = ", ".join(shown(m.name) for m in labelled)
        raise UserError(f"{shown(archive.path)} holds several CSV files with faces ({several}): give data.path one")
    return labelled


def read(archive: Archive, members: Sequence[CsvMember], fingerprint: str, flaws: Flaws | None = None) -> FaceTable:
    """The faces of `members`, in their order, which come from `choose`.

    Args:
        archive: where they are.
        members: one file, or train.csv and test.csv.
        fingerprint: of the content.
        flaws: takes note of what is wrong with single rows, so that it is no error.

    Raises:
        UserError: a row is not 2,304 grey levels with a label and a split that are known, and there is nowhere to note
            it; the message has its number, 0 for the first after the header. Or what is there is no such CSV at all.
    """
    # glibc gives freed memory back to the system and faults it in again for every batch, which takes as long as
    # parsing; freeing one large block raises the size from which on it does so.
    np.empty(16 << 20, dtype=np.uint8)
    by_name = {member.name: member for member in members}
    labels = LabelColumn()
    parts = {
        name: _read_rows(archive, by_name[name], stream, labels, None if flaws is None else Flaws())
        for name, stream in archive.members(list(by_name))
    }
    ordered = [parts[member.name] for member in members]
    if flaws is not None:
        for i, part in enumerate(ordered):
            assert part.flaws is not None
            flaws.add(part.flaws, sum(len(before.codes) for before in ordered[:i]))
    ids = [f"row {i}" for i in range(len(ordered[0].codes))]
    if len(members) == 2:
        ids += [f"{PurePosixPath(members[1].name).name} row {i}" for i in range(len(ordered[1].codes))]
    classes, label_of_code = labels.resolve()
    table = FaceTable(
        images=np.concatenate([batch for part in ordered for batch in part.images]),
        labels=label_of_code[[code for part in ordered for code in part.codes]],
        split=np.array([split for part in ordered for split in part.splits], dtype=np.int8),
        ids=np.array([i.encode() for i in ids]),
        classes=classes,
        source=str(archive.path),
        fingerprint=fingerprint,
    )
    where = archive.where(members[0].name)
    train = table.rows("train")
    if not len(train):
        raise UserError(f"{where} has no training rows: Usage must be Training for those to train on")
    if not labels.numeric and not table.counts(train).all():
        name = classes[int(table.counts(train).argmin())]
        raise UserError(f"{where}: no training row has the emotion {found(name)}, but others do: correct the label")
    return table


@dataclass
class _Rows:
    """What was read of one file: uint8 (n, 48, 48) arrays, and for each row a label code and an index into SPLITS."""

    images: list[NDArray[np.uint8]]
    codes: list[int]
    splits: list[int]
    flaws: Flaws | None


def _read_rows(
    archive: Archive, member: CsvMember, stream: io.BufferedReader, labels: LabelColumn, flaws: Flaws | None
) -> _Rows:
    where = archive.where(member.name)
    column = {name: member.columns.index(name) for name in member.columns}
    usage = UsageColumn()
    default_split = SPLITS.index("test" if member.stem == "test" else "train")
    rows = _Rows([], [], [], flaws)

    def parsed(batch: list[bytes], first_row: int) -> NDArray[np.uint8]:
        try:
            return parse_pixels(batch, first_row, where)
        except UserError:
            if flaws is None:
                raise
        images = np.zeros((len(batch), SIDE, SIDE), dtype=np.uint8)
        for i, field in enumerate(batch):
            if first_row + i not in flaws.broken:
                with noted(flaws, first_row + i):
                    images[i] = parse_pixels([field], first_row + i, where)[0]
        return images

    def batches() -> Iterator[tuple[list[bytes], int]]:
        records = _records(unpacked(stream, where), where)
        next(records)  # the header
        batch: list[bytes] = []
        for row, fields in enumerate(records):
            here = f"{where}, row {row}"
            code, split, pixels = UNLABELLED, default_split, b""
            with noted(flaws, row):
                if len(fields) != len(member.columns):
                    raise UserError(
                        f"{here}: {len(fields)} values, but the header names {len(member.columns)}: correct it"
                    )
                if "usage" in column:
                    split = usage.split(fields[column["usage"]], here)
                if "emotion" in column:
                    code = labels.code(fields[column["emotion"]], here)
                pixels = fields[column["pixels"]]
            rows.codes.append(code)
            rows.splits.append(split)
            batch.append(pixels)
            if len(batch) == _BATCH:
                yield batch, row + 1 - _BATCH
                batch = []
        if batch:
            yield batch, len(rows.codes) - len(batch)

    rows.images = list(overlapped(lambda batch: parsed(*batch), batches()))
    if not rows.codes:
        raise UserError(f"{where} has a header and no rows: it was cut short; download it again")
    return rows


def _records(lines: io.BufferedReader, where: str) -> Iterator[list[bytes]]:
    """The fields of each record, the header first; blank lines are passed over, as pandas does."""
    row = -1
    while line := lines.readline(MAX_LINE):
        quoted = b'"' in line
        if quoted and line.count(b'"') % 2:
            line += _to_closing_quote(lines, MAX_LINE - len(line))
        here = f"{where}, " + (f"row {row}" if row >= 0 else "header")
        if len(line) >= MAX_LINE:
            raise UserError(f"{here} is longer than {MAX_LINE:,} bytes: no CSV of faces, or a quote is left open")
        if line.isspace():
            continue
        if quoted:
            try:
                text = io.StringIO(line.decode("latin-1"), newline="")  # any bytes there and back
                fields = next(csv.reader(text, skipinitialspace=True, strict=True))
            except csv.Error as error:
                raise UserError(f"{here} is not a row of a CSV ({error}): correct its quotes") from error
            yield [field.encode("latin-1") for field in fields]
        else:
            yield line.rstrip(b"\r\n").split(b",")
        row += 1


def _to_closing_quote(lines: io.BufferedReader, room: int) -> bytes:
    """The lines of a record after its first, in which a quote is left open; at most `room` bytes."""
    parts = []
    while room > 0 and (line := lines.readline(room)):
        parts.append(line)
        room -= len(line)
        if line.count(b'"') % 2:
            break
    return b"".join(parts)


def _header(stream: io.BufferedReader, where: str) -> tuple[str, ...]:
    """Column names, lower-cased and stripped."""
    fields = next(_records(unpacked(stream, where), where), None)
    if fields is None:
        raise UserError(f"{where} is empty: download it again")
    try:
        return tuple(field.removeprefix(codecs.BOM_UTF8).decode().strip().lower() for field in fields)
    except UnicodeDecodeError:
        raise UserError(
            f"{where} begins with {found(fields[0])}, which is neither UTF-8 text nor a .zip or .tar: "
            "give data.path a CSV saved as UTF-8, a folder or an archive"
        ) from None


def _missing(column: str, archive: Archive, name: str, columns: Sequence[str]) -> UserError:
    names = ", ".join(found(c) for c in columns[:8]) + (", …" if len(columns) > 8 else "")
    return UserError(
        f"{archive.where(name)} has no column '{column}', only {names}: "
        "FER-2013's fer2013.csv has emotion, pixels and Usage"
    )
