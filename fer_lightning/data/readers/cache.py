"""Face tables cached on disk by the digest of their source, which is parsed once and then memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.readers.archive import Stamp
from fer_lightning.data.table import FaceTable
from fer_lightning.errors import printable

log = logging.getLogger(__name__)

FORMAT = 1
"""Increase this whenever a reader or the file format changes, so that older entries are ignored."""

_ARRAYS = ("images", "labels", "split", "ids", "classes")
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


class Cache:
    """Tables under `root`/v<FORMAT>/tables/<digest>/; …/memos/ map paths to digests.

    Safe for concurrent processes: entries are renamed into place when complete, and have checksums. If the cache cannot
    be written, there is one warning, and nothing else.
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
        memo = self._memo(path)
        built = memo.with_name(f".{uuid.uuid4().hex}")
        try:
            memo.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"path": printable(path), "listing": stamp.listing, "digest": digest})
            built.write_text(text, encoding="utf-8")
            built.replace(memo)
        except OSError as error:
            self._warn(error)
            with suppress(OSError):
                built.unlink(missing_ok=True)

    def open(self, digest: str, source: str) -> FaceTable | None:
        """The table with that digest, its images memory-mapped; None if there is no valid one."""
        entry = self._tables / digest
        try:
            checksums = json.loads((entry / "table.json").read_text(encoding="utf-8"))["crc32"]
            if any(_crc32(_file(entry, name)) != checksums[name] for name in _ARRAYS):
                raise ValueError("wrong checksum")
            images = np.load(_file(entry, "images"), mmap_mode="r")
            labels, split, ids, classes = (np.load(_file(entry, name)) for name in _ARRAYS[1:])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.info("%s is damaged (%s): reading the source again", entry, error)
            return None
        return _frozen(
            FaceTable(np.asarray(images), labels, split, ids, tuple(c.decode() for c in classes), source, digest)
        )

    def store(self, table: FaceTable) -> FaceTable:
        """Store `table`; the result is memory-mapped if that succeeded, otherwise in memory."""
        built = self._tables / f".{uuid.uuid4().hex}"
        try:
            built.mkdir(parents=True)
            classes = np.array([name.encode() for name in table.classes])
            for name in _ARRAYS:
                np.save(_file(built, name), classes if name == "classes" else getattr(table, name))
            checksums = {name: _crc32(_file(built, name)) for name in _ARRAYS}
            (built / "table.json").write_text(json.dumps({"crc32": checksums}), encoding="utf-8")
            self._install(built, table.fingerprint)
        except OSError as error:
            self._warn(error)
        finally:
            shutil.rmtree(built, ignore_errors=True)
        self._sweep()
        return self.open(table.fingerprint, table.source) or _frozen(table)

    def _install(self, built: Path, digest: str) -> None:
        """Rename `built` into place unless another process has stored a valid entry; replace a damaged one."""
        entry = self._tables / digest
        for attempts_left in (2, 1, 0):
            try:
                built.rename(entry)
                return
            except OSError:
                if self.open(digest, "") is not None:
                    return
                if not attempts_left:
                    raise
            aside = entry.with_name(f".{uuid.uuid4().hex}")
            with suppress(OSError):
                entry.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        with suppress(OSError):
            for left in self._tables.glob(".*"):
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(left, ignore_errors=True)

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


def _file(entry: Path, name: str) -> Path:
    return entry / f"{name}.npy"


def _crc32(file: Path) -> int:
    return zlib.crc32(np.memmap(file, dtype=np.uint8, mode="r").data)


def _frozen(table: FaceTable) -> FaceTable:
    """`table` with read-only arrays, so that it is the same from memory and from disk."""
    arrays: dict[str, Any] = {name: _read_only(getattr(table, name)) for name in _ARRAYS if name != "classes"}
    return replace(table, **arrays)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
