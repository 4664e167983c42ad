"""Data sources: FER-2013 in all of its formats, FER+, and folders of other faces."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fer_lightning.data import ferplus
from fer_lightning.data.ferplus import Target
from fer_lightning.data.readers import csvfile, folder, remote
from fer_lightning.data.readers.archive import Archive
from fer_lightning.data.readers.cache import Cache, default_root
from fer_lightning.data.readers.flaws import Flaws
from fer_lightning.data.readers.streams import reading
from fer_lightning.data.table import SPLITS, FaceTable
from fer_lightning.errors import UserError, printable

HOW_TO_GET = (
    "get FER-2013 from Kaggle (msambare/fer2013, or the challenge's fer2013.csv), or use data=synthetic, "
    "which needs no download"
)


def load(path: str | os.PathLike[str] | None, *, cache_dir: str | os.PathLike[str] | None = None) -> FaceTable:
    """The faces at `path`, whose format is detected from its content.

    It may be a CSV with the columns emotion, pixels and Usage (fer2013.csv, icml_face_data.csv), or train.csv with
    val.csv and test.csv beside it; a folder with train/<class>/*, test/<class>/* and perhaps val/<class>/*; a folder of
    such CSVs; any of them as .zip, .tar, .tar.gz, .tar.xz, .tar.bz2, and a CSV also as .gz, .xz, .bz2; or the URL of
    such a file.

    Args:
        path: the CSV, folder or archive.
        cache_dir: the folder for parsed tables and downloads; default FER_LIGHTNING_CACHE, or else the user's cache
            folder.

    Returns:
        The table, with read-only arrays. Rows of a CSV in their order, those of a folder sorted by name.

    Raises:
        UserError: the path does not exist, or what is there cannot be read completely as labelled faces.
    """
    root = Path(cache_dir) if cache_dir else default_root()
    cache = Cache(root)
    local, source = _locate(path, root)
    with _open(local, source) as archive:
        stamp, now = archive.stamp(), time.time_ns()
        known = cache.recall(local, stamp)
        table = cache.open(known, source) if known else None
        if table is not None:
            return table
        layout = _look(archive) if archive.is_directory else None  # which of many files to read
        digest = archive.digest(layout.names if layout else ())
        table = cache.open(digest, source)
        if table is None:
            layout = layout or _look(archive)
            table = layout.read(archive, digest)
            if archive.changed(layout.names):
                raise UserError(f"{printable(source)} changed while it was read: run again when it is complete")
            table = cache.store(replace(table, source=source))
    cache.remember(local, stamp, digest, now)
    return table


def load_ferplus(
    path: str | os.PathLike[str] | None,
    votes: str | os.PathLike[str] | None,
    target: Target | None,
    *,
    merge: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FaceTable:
    """FER-2013's images with the classes and labels of FER+.

    Args:
        path: fer2013.csv, in any form that `load` reads.
        votes: fer2013new.csv.
        target, merge: see `fer_lightning.data.ferplus.relabelled`.
        cache_dir: as for `load`.

    Raises:
        UserError: as `load`; or the votes are missing, or do not fit the images.
    """
    if votes is None:
        raise UserError(f"data.votes is not set, and data=ferplus has its labels from there: {ferplus.HOW_TO_GET}")
    if target is None:
        raise UserError("data.target=null: data=ferplus needs one of majority, probability, crossentropy")
    return ferplus.relabelled(ferplus.attach(load(path, cache_dir=cache_dir), votes), target, merge)


@dataclass(frozen=True)
class Survey:
    """A source and the faults of its single images.

    Attributes:
        faces: the images that can be read.
        broken: id, split, class and fault of each that cannot.
        small: width and height of those that were enlarged to 48 by 48, by id.
    """

    faces: FaceTable
    broken: list[tuple[str, str, str, str]]
    small: dict[str, tuple[int, int]]


def survey(path: str | os.PathLike[str], *, votes: Path | None = None) -> Survey:
    """The faces at `path` as `load` reads them, except that images which cannot be read are left out and listed.

    If there are such images, and of class folders always, nothing is cached, so that `load` still fails.

    Args:
        path: the CSV, folder or archive.
        votes: FER+ votes for its rows, including those that cannot be read.

    Raises:
        UserError: as `load`, but for the content of single images only if most of them cannot be read; or the votes do
            not fit.
    """
    local, source = _locate(path, default_root())
    with _open(local, source) as archive:
        layout = _look(archive)
        if isinstance(layout, csvfile.Layout):
            table = None
            with suppress(UserError):
                table = load(path)
            if table is not None:
                return Survey(ferplus.attach(table, votes, "--votes") if votes else table, [], {})
        flaws = Flaws()
        table = replace(layout.read(archive, "", flaws), source=source)
    if 2 * len(flaws.broken) > len(table):
        first = flaws.broken[min(flaws.broken)]
        raise UserError(f"{first}; nor can {len(flaws.broken) - 1:,} others of its {len(table):,} images be read")
    table = ferplus.attach(table, votes, "--votes") if votes else table
    names = [name.decode() for name in table.ids.tolist()]
    classes = [*table.classes, ""]  # UNLABELLED, -1, is the last
    broken = [
        (names[row], SPLITS[table.split[row]], classes[table.labels[row]], flaws.broken[row])
        for row in sorted(flaws.broken)
    ]
    small = {names[row]: size for row, size in flaws.small.items()}
    return Survey(table.without(np.array(list(flaws.broken), dtype=np.int64)), broken, small)


def _locate(path: str | os.PathLike[str] | None, cache_root: Path) -> tuple[Path, str]:
    """The file or folder on this machine that `path` names, and `path` as messages and reports call it."""
    text = os.fspath(path or "")
    if not text:
        raise UserError(f"data.path is empty: set it to a CSV, a folder, an archive or a URL; {HOW_TO_GET}")
    if "\0" in text:
        raise UserError(f"data.path {printable(text)} is no path: {HOW_TO_GET}")
    if remote.is_url(text):
        return remote.download(text, cache_root), text
    local = Path(os.path.expanduser(text))  # noqa: PTH111 (Path's own raises RuntimeError for an unknown user)
    with reading(printable(local)):
        try:
            local.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"data.path {printable(local)} does not exist{_near(local)}: {HOW_TO_GET}") from None
    return local, str(local)


def _near(path: Path) -> str:
    """A hint with similar names in the same folder."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=3)
    return f" (did you mean {' or '.join(printable(path.parent / name) for name in close)}?)" if close else ""


def _open(path: Path, source: str) -> Archive:
    """The archive at `path`; for a train.csv, with the val.csv or validation.csv and the test.csv beside it."""
    if path.name.lower().startswith("train.csv") and path.is_file():
        end = path.name[len("train") :].lower()
        with reading(printable(path.parent)):
            names = sorted(os.listdir(path.parent))
        beside = [
            next((name for name in names if name.lower() in wanted), None)
            for wanted in ({f"val{end}", f"validation{end}"}, {f"test{end}"})
        ]
        if any(beside):
            return Archive(path.parent, only=[path.name, *filter(None, beside)])
    return Archive(path, label=source)


def _look(archive: Archive) -> csvfile.Layout | folder.Layout:
    """CSV files if there are any with faces, since their pixels are the original ones; otherwise class folders."""
    folders = folder.find_layout(archive)
    layout = csvfile.find_layout(archive, sole=folders is None) or folders
    if layout is None:
        names = sorted({name.split("/")[0] for name in (*archive.names, *archive.folders)})
        found = ", ".join(printable(name) for name in names[:6]) + (", …" if len(names) > 6 else "") or "nothing"
        raise UserError(
            f"{archive.label} has no train/ with class folders and no CSV with pixels, but {found}: "
            "expected train/happy/1.jpg, test/happy/2.jpg and so on (val/ if you like), or fer2013.csv; "
            "an archive inside it can be given as data.path itself"
        )
    return layout
