"""What every container of files looks like to its readers; and the two that lie open: a file and a directory."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Collection, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from fer_lightning.data.readers.streams import guarded, opened, reading, shown
from fer_lightning.errors import UserError

MAX_MEMBERS = 1_000_000
"""More files than this in one place are a mistake (a home directory) or an attack, not a data set."""

_JUNK = {"__macosx", "thumbs.db", "desktop.ini"}


class Stamp(NamedTuple):
    """What the file system says of the files behind an archive, without reading them.

    Attributes:
        listing: digest of names, sizes, modification and change times, and inodes.
        newest_ns: the latest change time among them, in nanoseconds since the epoch.
    """

    listing: str
    newest_ns: int


class Archive:
    """Named members, read in storage order. Here: one plain or compressed file, its own only member.

    Attributes:
        path: where it lies.
        is_single: whether there is no container, just one file.
        is_directory: whether the members are files of their own.
    """

    is_single = True
    is_directory = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what is held open."""

    @cached_property
    def names(self) -> list[str]:
        """Members that are files, as relative POSIX paths in storage order, less what operating systems leave behind.

        Raises:
            UserError: the archive is damaged, encrypted, a bomb, or has members that lead out of it.
        """
        return [self.path.name]

    @cached_property
    def folders(self) -> set[str]:
        """Folders that are listed in their own right, so that empty ones are seen."""
        return set()

    def members(self, wanted: Collection[str]) -> Iterator[tuple[str, io.BufferedReader]]:
        """The `wanted` members in storage order, each with its bytes; a stream is good until the next is asked for.

        Raises:
            UserError: here or while the stream is read: damaged, unreadable, or far longer than it can honestly be.
        """
        where = shown(self.path)
        with reading(where), self.path.open("rb") as file:
            yield self.path.name, guarded(file, where)

    def where(self, name: str) -> str:
        """The member `name` as messages call it."""
        return shown(self.path) if name == self.path.name else f"{shown(self.path)}: {shown(name)}"

    @cached_property
    def _files(self) -> dict[str, os.stat_result]:
        """The files on disk behind the members, as they were when first looked at."""
        with reading(shown(self.path)):
            return {"": self.path.stat()}

    def stamp(self) -> Stamp:
        """The files as they were when first looked at."""
        lines = [f"{name}\0{_facts(now)}\n" for name, now in self._files.items()]
        if self.is_directory:  # elsewhere the folders are inside, and listing them would take long
            lines += sorted(self.folders)
        listing = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
        return Stamp(listing, max((now.st_ctime_ns for now in self._files.values()), default=0))

    def changed(self, names: Collection[str]) -> bool:
        """Whether a file that holds one of `names` is another one by now."""
        behind = names if self.is_directory else [""]
        with reading(shown(self.path)):
            return any(_facts((self.path / name).stat()) != _facts(self._files[name]) for name in behind)

    def digest(self, names: Collection[str]) -> str:
        """sha256 of the content behind `names`, in hex."""
        return _sha256(self.path)


class Directory(Archive):
    """A folder with all beneath it, links followed; or just the files `only` of it."""

    is_single = False
    is_directory = True

    def __init__(self, path: Path, only: Collection[str] | None = None) -> None:
        super().__init__(path)
        self._only = only

    @cached_property
    def _walk(self) -> tuple[dict[str, os.stat_result], set[str]]:
        if self._only is not None:
            with reading(shown(self.path)):
                return {name: (self.path / name).stat() for name in self._only}, set()
        files: dict[str, os.stat_result] = {}
        folders: set[str] = set()
        todo: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        while todo:
            folder, above = todo.pop()
            with reading(self.where(folder) if folder else shown(self.path)), os.scandir(self.path / folder) as entries:
                here = (self.path / folder).stat()
                key = (here.st_dev, here.st_ino)
                if key in above:
                    continue  # a link back to a folder that this one lies in
                for entry in entries:
                    name = f"{folder}{entry.name}"
                    if is_junk(name):
                        continue
                    if entry.is_dir():
                        folders.add(name)
                        todo.append((name + "/", above | {key}))
                    elif entry.is_file() or entry.is_symlink():  # a dangling link fails when it is read, by name
                        files[name] = entry.stat(follow_symlinks=entry.is_file())
            check_count(len(files) + len(folders), self.path)
        return dict(sorted(files.items())), folders

    @cached_property
    def _files(self) -> dict[str, os.stat_result]:
        return self._walk[0]

    @cached_property
    def names(self) -> list[str]:
        return list(self._files)

    @cached_property
    def folders(self) -> set[str]:
        return self._walk[1]

    def members(self, wanted: Collection[str]) -> Iterator[tuple[str, io.BufferedReader]]:
        wanted = set(wanted)
        for name in self.names:
            if name in wanted:
                with opened(partial(io.FileIO, self.path / name), self.where(name)) as stream:
                    yield name, stream

    def where(self, name: str) -> str:
        return shown(self.path / name)

    def digest(self, names: Collection[str]) -> str:
        lines = [f"{_sha256(self.path / name)} {name}\n" for name in sorted(names)]
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def is_junk(name: str) -> bool:
    """Whether a path is hidden, or left behind by macOS or Windows, at any level."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in name.split("/"))


def check_count(count: int, path: Path) -> None:
    """Raise UserError when `path` holds more files than a data set does."""
    if count > MAX_MEMBERS:
        raise UserError(f"{shown(path)} holds more than {MAX_MEMBERS:,} files: give data.path the data set itself")


def _facts(now: os.stat_result) -> tuple[int, int, int, int]:
    return now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino


def _sha256(path: Path) -> str:
    with reading(shown(path)), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
