"""Face tables cached on disk by the digest of their source, which is parsed once and then memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fer_lightning.data.readers.archive import Stamp
from fer_lightning.data.readers.streams import reading
from fer_lightning.data.table import FaceTable
from fer_lightning.errors import UserError, printable

log = logging.getLogger(__name__)

FORMAT = 3
"""Increase this whenever a reader or the file format changes, so that older entries are ignored."""

_UNTRUSTED_NS = 1_000_000_000  # a file may change again unnoticed within the resolution of its time stamps
_ABANDONED_S = 24 * 3600


def default_root() -> Path:
    """FER_LIGHTNING_CACHE, or else the user's cache folder; without a home folder, a path that cannot be written."""
    if folder := os.environ.get("FER_LIGHTNING_CACHE"):
        return Path(folder).expanduser()
    from platformdirs import user_cache_path

    with suppress(RuntimeError):  # older releases return a relative path instead
        if (root := user_cache_path("fer-lightning")).is_absolute():
            return root
    return Path(os.devnull, "fer-lightning")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write, renamed to `path` where the block ends without an exception and removed where it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    built = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield built
        built.replace(path)
    finally:
        built.unlink(missing_ok=True)


def stored_arrays(file: Path) -> dict[str, Any]:
    """The arrays of an .npz file by name.

    Raises:
        UserError: it is missing or damaged.
    """
    with reading(str(file)), file.open("rb") as opened, np.load(opened) as stored:
        if stored.zip.testzip() is not None:  # first, since numpy's parser fails in many ways on damaged bytes
            raise ValueError("wrong checksum")
        return dict(stored)


class Cache:
    """Tables under `root`/v<FORMAT>/tables/, with the images in <digest>.npy and all else in <digest>.npz; …/memos/ map
    paths to digests.

    Safe for concurrent processes: files are renamed into place when complete, have checksums, and are the same from
    every process. If the cache cannot be written, there is one warning, and nothing else.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tables = root / f"v{FORMAT}" / "tables"
        self._memos = root / f"v{FORMAT}" / "memos"
        self._warned = False

    def recall(self, path: Path, stamp: Stamp) -> str | None:
        """The digest of `path` if its files have not changed since `remember`."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            memo = json.loads(self._memo(path).read_text(encoding="utf-8"))
            if memo["listing"] == stamp.listing:
                return str(memo["digest"])
        return None

    def remember(self, path: Path, stamp: Stamp, digest: str, read_ns: int) -> None:
        """Store the digest of `path`; reading its content began at `read_ns`, nanoseconds since the epoch."""
        if read_ns - stamp.newest_ns < _UNTRUSTED_NS:
            return
        memo = {"path": printable(path), "listing": stamp.listing, "digest": digest}
        try:
            with replacing(self._memo(path)) as built:
                built.write_text(json.dumps(memo), encoding="utf-8")
        except OSError as error:
            self._warn(error)

    def open(self, digest: str, source: str) -> FaceTable | None:
        """The table with that digest, its images memory-mapped; None if there is no valid one."""
        images, others = self._files(digest)
        try:
            with reading(str(others)):
                if not others.is_file():
                    return None
                arrays = stored_arrays(others)
                if arrays.pop("crc32") != _crc32(images):
                    raise ValueError("wrong checksum of the images")
                mapped = np.asarray(np.load(images, mmap_mode="r"))
        except UserError as error:
            log.info("reading the source again: %s", error)
            return None
        classes = tuple(name.decode() for name in arrays.pop("classes"))
        return _read_only(FaceTable(mapped, **arrays, classes=classes, source=source, fingerprint=digest))

    def store(self, table: FaceTable) -> FaceTable:
        """Store `table`; the result is memory-mapped if that succeeded, otherwise in memory."""
        images, others = self._files(table.fingerprint)
        classes = np.array([name.encode() for name in table.classes])
        arrays: dict[str, Any] = {
            "labels": table.labels,
            "split": table.split,
            "ids": table.ids,
            "classes": classes,
        }
        try:
            with replacing(others) as built_others, replacing(images) as built_images:
                np.save(built_images, table.images)
                np.savez(built_others, **arrays, crc32=_crc32(built_images))
        except OSError as error:
            self._warn(error)
        self._sweep()
        return self.open(table.fingerprint, table.source) or _read_only(table)

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        with suppress(OSError):
            for left in self._tables.glob(".*"):
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    left.unlink()

    def _files(self, digest: str) -> tuple[Path, Path]:
        return self._tables / f"{digest}.npy", self._tables / f"{digest}.npz"

    def _memo(self, path: Path) -> Path:
        return self._memos / f"{hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()}.json"

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning(
                "no cache in %s (%s), so data is parsed in every run: set FER_LIGHTNING_CACHE to a writable folder",
                self._root,
                error,
            )
            self._warned = True


def _crc32(file: Path) -> int:
    return zlib.crc32(np.memmap(file, dtype=np.uint8, mode="r").data)


def _read_only(table: FaceTable) -> FaceTable:
    """`table`, the same from memory and from disk."""
    for array in (table.images, table.labels, table.split, table.ids):
        array.flags.writeable = False
    return table
