"""A directory, a .zip, a .tar(.gz, .xz, .bz2) or a single file as one interface; nothing is extracted to disk.

The containers are read by the standard library. fsspec's zip and tar file systems cannot do it: they drop a member that
occurs twice, report links as files, and take a damaged tar header for the end of the archive.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import IO, NamedTuple

from fer_lightning.data.readers.streams import check_ratio, decompressed, opened, reading
from fer_lightning.errors import UserError, printable

MAX_MEMBERS = 1_000_000
"""More files than this are a mistake (a home directory) or an attack, not a data set."""

SPLIT_OF = {"val": "val", "validation": "val", "test": "test"}
"""The split of a CSV without Usage, by the `stem` of its name."""

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_JUNK = {"__macosx", "thumbs.db", "desktop.ini"}


def stem(name: str) -> str:
    """The name of a file in lower case up to its first dot."""
    return posixpath.basename(name).lower().split(".")[0]


class Stamp(NamedTuple):
    """What the file system knows of the files behind an archive without reading them.

    Attributes:
        listing: digest of names, sizes, modification and change times, and inodes.
        newest_ns: the latest change time among them, in nanoseconds since the epoch.
    """

    listing: str
    newest_ns: int


class Archive:
    """Named files, in storage order. What kind of file `path` is, its content decides, not its name.

    Members are listed when they are first asked for.

    Args:
        path: a directory, whose links are followed, or a file.
        label: what the user calls it, for messages; default `path`.
        only: the files of the directory to consider; default all, at any depth.

    Attributes:
        is_directory: whether the members are files on disk.

    Raises:
        UserError: here, `path` cannot be read or is neither a file nor a directory; wherever members are listed or
            read, the file is damaged, encrypted or a decompression bomb, or members lead out of it.
    """

    def __init__(self, path: Path, label: str | None = None, only: Collection[str] | None = None) -> None:
        self.path, self.label, self._only = path, printable(label or path), only
        with reading(self.label):
            self._stat = path.stat()
        self.is_directory = stat.S_ISDIR(self._stat.st_mode)
        if not (self.is_directory or stat.S_ISREG(self._stat.st_mode)):
            raise UserError(
                f"{self.label} is neither a file nor a directory: set data.path to a CSV, a folder or an archive"
            )
        self._resources = ExitStack()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def names(self) -> list[str]:
        """Members that are files, as relative POSIX paths, without what operating systems leave behind."""
        return list(self._contents.files)

    @property
    def folders(self) -> set[str]:
        """Folders that are listed themselves, so that empty ones are known."""
        return self._contents.folders

    @property
    def is_single(self) -> bool:
        """Whether there is no container but one file, perhaps compressed: its own only member."""
        return self._contents.is_single

    def members(self, names: Collection[str]) -> Iterator[tuple[str, io.BufferedReader]]:
        """Those of `names` that exist, in storage order, each with its bytes: valid until the next is requested."""
        names = set(names)
        for name, open_ in self._contents.files.items():
            if name in names:
                with opened(open_, self.where(name)) as stream:
                    yield name, stream

    def where(self, name: str) -> str:
        """The member `name` in messages."""
        if self.is_directory:
            return f"{self.label}/{printable(name)}"
        return self.label if self.is_single else f"{self.label}: {printable(name)}"

    def stamp(self) -> Stamp:
        """The files on disk as they were when they were first listed."""
        stats = self._contents.stats if self.is_directory else {"": self._stat}
        lines = [f"{name}\0{_identity(now)}\n" for name, now in stats.items()]
        lines += sorted(self.folders) if self.is_directory else []
        listing = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
        return Stamp(listing, max((now.st_ctime_ns for now in stats.values()), default=0))

    def changed(self, names: Collection[str]) -> bool:
        """Whether a file on disk that holds one of `names` is no longer as it was when it was first listed."""
        stats = {name: self._contents.stats[name] for name in names} if self.is_directory else {"": self._stat}
        with reading(self.label):
            return any(_identity((self.path / name).stat()) != _identity(old) for name, old in stats.items())

    def digest(self, names: Collection[str]) -> str:
        """sha256 of the content, in hex: of the `names` in a directory, otherwise of the file. Of a single CSV the name
        counts where the split of its rows follows from it."""
        if not self.is_directory:
            content, split = _sha256(self.path, self.label), SPLIT_OF.get(stem(self.path.name))
            return content if split is None else hashlib.sha256(f"{content} {split}\n".encode()).hexdigest()
        lines = [f"{_sha256(self.path / name, self.where(name))} {name}\n" for name in sorted(names)]
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    @cached_property
    def _contents(self) -> _Contents:
        contents = _Contents(self.label)
        if self.is_directory:
            contents.add_directory(self.path, self._only)
            return contents
        with reading(self.label):
            file = self._resources.enter_context(self.path.open("rb"))
            if file.peek(4)[:4] in _ZIP_MAGIC:
                contents.add_zip(self._resources.enter_context(zipfile.ZipFile(file)))
                return contents
            stream = decompressed(file, self.label)
            if _is_tar_header(stream.read(tarfile.BLOCKSIZE)):
                stream.seek(0)
                contents.add_tar(stream)
                return contents
        contents.is_single = True
        contents.files[self.path.name] = partial(io.FileIO, self.path)
        return contents


class _Contents:
    """The members of an archive, checked: how each is opened, and of a directory what the file system knows of it."""

    def __init__(self, label: str) -> None:
        self.label, self.is_single = label, False
        self.files: dict[str, Callable[[], IO[bytes]]] = {}
        self.folders: set[str] = set()
        self.stats: dict[str, os.stat_result] = {}

    def add_directory(self, root: Path, only: Collection[str] | None) -> None:
        todo: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        while todo and only is None:
            folder, above = todo.pop()
            with reading(f"{self.label}/{printable(folder)}"), os.scandir(root / folder) as entries:
                here = (root / folder).stat()
                key = (here.st_dev, here.st_ino)
                if key in above:
                    continue  # a link to a folder that contains this one
                for entry in entries:
                    name = f"{folder}{entry.name}"
                    if _is_junk(name):
                        continue
                    if entry.is_dir():
                        self.folders.add(name)
                        todo.append((name + "/", above | {key}))
                    elif entry.is_file() or entry.is_symlink():  # a dangling link fails, by its name, when it is read
                        self.stats[name] = entry.stat(follow_symlinks=entry.is_file())
                    self._check_count(len(self.stats) + len(self.folders))
        with reading(self.label):
            self.stats |= {name: (root / name).stat() for name in only or ()}
        self.stats = dict(sorted(self.stats.items()))
        self.files = {name: partial(io.FileIO, root / name) for name in self.stats}

    def add_zip(self, archive: zipfile.ZipFile) -> None:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        self._check_count(len(infos))
        for info in infos:
            where = f"{self.label}: {printable(info.orig_filename)}"
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{where} is a link, which may lead out of the archive: pack the files themselves")
            if info.flag_bits & 0x1:
                raise UserError(f"{where} is protected by a password: unpack it, and set data.path to the folder")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Of the others zipfile decompresses what it has read at once, however large the result is.
                raise UserError(f"{where} is compressed by an unusual method: pack it again by the usual one, Deflate")
            check_ratio(info.file_size, info.compress_size, where)
            self._add(info.orig_filename, where, None if info.filename.endswith("/") else partial(archive.open, info))
        assert archive.fp is not None
        check_ratio(sum(info.file_size for info in infos), archive.fp.seek(0, io.SEEK_END), self.label)

    def add_tar(self, stream: io.BufferedReader) -> None:
        tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (members are read later)
        for count, info in enumerate(tar):
            self._check_count(count)
            where = f"{self.label}: {printable(info.name)}"
            if not (info.isdir() or info.isreg()) or info.issparse():
                raise UserError(f"{where} is a link or a special file: pack the files themselves")
            self._add(info.name, where, None if info.isdir() else partial(_extract, tar, info))
        # tarfile ends silently at a damaged header; a complete archive ends with a block of zeros.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError(f"no valid member at byte {tar.offset}")
        while stream.read(1 << 20):
            pass  # the checksum of a .gz, .xz or .bz2 is at its end

    def _check_count(self, count: int) -> None:
        if count > MAX_MEMBERS:
            raise UserError(f"{self.label} holds more than {MAX_MEMBERS:,} files: set data.path to the data set itself")

    def _add(self, name: str, where: str, open_: Callable[[], IO[bytes]] | None) -> None:
        """Add a member that an archive calls `name`; a folder if it cannot be opened."""
        if not name or name.startswith("/") or re.search(r"\\|\0|^[A-Za-z]:|(^|/)\.\.(/|$)", name):
            raise UserError(f"{where} points outside the archive or nowhere, as in no data set: pack it again")
        name = posixpath.normpath(name)
        if _is_junk(name):
            return
        if open_ is None:
            self.folders.add(name)
            return
        if name in self.files:
            raise UserError(f"{where} is in the archive twice: pack it again")
        self.files[name] = open_


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None  # it is a regular file
    return file


def _is_junk(name: str) -> bool:
    """Whether a path is hidden, or left behind by macOS or Windows, at any level."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in name.split("/"))


def _is_tar_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _identity(now: os.stat_result) -> tuple[int, int, int, int]:
    return now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino


def _sha256(path: Path, where: str) -> str:
    with reading(where), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
