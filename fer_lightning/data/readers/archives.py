"""Opens a directory, a .zip, a .tar(.gz, .xz, .bz2) or a single file by what it is; nothing is extracted to disk."""

from __future__ import annotations

import io
import posixpath
import re
import stat
import tarfile
import zipfile
from collections.abc import Collection, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from fer_lightning.data.readers.members import Archive, Directory, check_count, is_junk
from fer_lightning.data.readers.streams import check_ratio, guarded, opened, reading, shown, unpacked
from fer_lightning.errors import UserError

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")


def open_archive(path: Path) -> Archive:
    """The archive at `path`, its kind told by its content, not its name; members are listed when first asked for.

    Raises:
        UserError: `path` cannot be read, is no regular file or directory, or is cut short.
    """
    where = shown(path)
    with reading(where):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return Directory(path)
    if not stat.S_ISREG(mode):
        raise UserError(f"{where} is neither a file nor a directory: give data.path a CSV, a folder or an archive")
    with reading(where), path.open("rb") as file:
        if file.read(4) in _ZIP_MAGIC:
            return Zip(path)
        file.seek(0)
        with unpacked(file, where) as stream:
            return Tar(path) if _is_tar_header(stream.read(tarfile.BLOCKSIZE)) else Archive(path)


class Zip(Archive):
    """A .zip file."""

    is_single = False

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        with reading(shown(self.path)):
            return zipfile.ZipFile(self.path)

    def close(self) -> None:
        if "_zip" in self.__dict__:
            self._zip.close()

    @cached_property
    def _listed(self) -> tuple[dict[str, zipfile.ZipInfo], set[str]]:
        files: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        total = 0
        infos = sorted(self._zip.infolist(), key=lambda info: info.header_offset)
        check_count(len(infos), self.path)
        for info in infos:
            where = f"{shown(self.path)}: {shown(info.orig_filename)}"
            name = _safe_name(info.orig_filename, where)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{where} is a link, and links may lead out of the archive: pack the files themselves")
            if info.flag_bits & 0x1:
                raise UserError(f"{where} is protected by a password: unpack it, and give data.path the folder")
            check_ratio(info.file_size, info.compress_size, where)
            total += info.file_size
            if is_junk(name):
                continue
            if info.is_dir():
                folders.add(name)
            else:
                _add(files, name, info, where)
        check_ratio(total, self.path.stat().st_size, shown(self.path))
        return files, folders

    @cached_property
    def names(self) -> list[str]:
        return list(self._listed[0])

    @cached_property
    def folders(self) -> set[str]:
        return self._listed[1]

    def members(self, wanted: Collection[str]) -> Iterator[tuple[str, io.BufferedReader]]:
        wanted = set(wanted)
        for name, info in self._listed[0].items():
            if name in wanted:
                with opened(partial(self._zip.open, info), self.where(name)) as stream:
                    yield name, stream


class Tar(Archive):
    """A .tar file, plain or compressed: sequential, so every look at it is one pass."""

    is_single = False

    def _scan(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        where = shown(self.path)
        with reading(where):
            file = self.path.open("rb")
        with file:
            stream = unpacked(file, where)
            with reading(where):
                tar = tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 18, tarinfo=_StrictTarInfo)  # noqa: SIM115
            with tar:
                while True:
                    with reading(where):
                        info = tar.next()
                    if info is None:
                        break
                    yield tar, info
            while stream.read(1 << 20):
                pass  # the checksum of a .gz or .xz stands at its end

    @cached_property
    def _listed(self) -> tuple[list[str], set[str]]:
        files: dict[str, None] = {}
        folders: set[str] = set()
        for count, (_, info) in enumerate(self._scan()):
            check_count(count, self.path)
            where = f"{shown(self.path)}: {shown(info.name)}"
            name = _safe_name(info.name, where)
            if not (info.isdir() or info.isreg()) or info.issparse():
                raise UserError(f"{where} is a link or a special file, not a plain one: pack the files themselves")
            if is_junk(name):
                continue
            if info.isdir():
                folders.add(name)
            else:
                _add(files, name, None, where)
        return list(files), folders

    @cached_property
    def names(self) -> list[str]:
        return self._listed[0]

    @cached_property
    def folders(self) -> set[str]:
        return self._listed[1]

    def members(self, wanted: Collection[str]) -> Iterator[tuple[str, io.BufferedReader]]:
        missing = set(wanted)
        for tar, info in self._scan():
            name = posixpath.normpath(info.name)
            if name in missing:
                missing.remove(name)
                with reading(self.where(name)):
                    member = tar.extractfile(info)
                assert member is not None  # `names` lists regular files only
                yield name, guarded(member, self.where(name))
                if not missing:
                    return


class _StrictTarInfo(tarfile.TarInfo):
    """Makes a damaged header an error; tarfile takes one for the end of the archive and drops the rest unsaid."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise  # the block of zeros that ends every whole tar file
            raise EOFError(f"no valid member at byte {tar.offset}: {error}") from error


def _is_tar_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _safe_name(name: str, where: str) -> str:
    """`name` as a relative POSIX path without "." and doubled slashes."""
    if not name or name.startswith("/") or re.search(r"\\|\0|^[A-Za-z]:|(^|/)\.\.(/|$)", name):
        raise UserError(f"{where} points outside the archive or nowhere, as no data set should: pack it again")
    return posixpath.normpath(name)


def _add(files: dict[str, Any], name: str, info: object, where: str) -> None:
    if name in files:
        raise UserError(f"{where} is in the archive twice: pack it again")
    files[name] = info
