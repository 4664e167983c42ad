"""Byte streams that do no harm: a failure to read is a UserError, and no stream is longer than it can honestly be."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any, Protocol, TypeVar

from fer_lightning.errors import UserError

FREE_BYTES = 64 << 20
"""Content up to this size may be packed as tightly as it likes."""

MAX_RATIO = 50
"""Beyond `FREE_BYTES`, unpacked content may be this many times the packed; FER-2013 itself reaches 4."""

_T = TypeVar("_T")
_R = TypeVar("_R")

# What the decompressors and archive modules raise on damaged bytes. Some of it is plain: ValueError, IndexError,
# OverflowError and MemoryError (an absurd declared size), RecursionError (chained long names in a tar).
_DAMAGE = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def shown(name: str | os.PathLike[str]) -> str:
    """`name` for a message of one line: as it is where that can be printed, escaped where it cannot."""
    text = os.fspath(name)
    return text if text.isprintable() else ascii(text)[1:-1]


def found(value: str | bytes) -> str:
    """A value out of a file for a message: quoted, escaped, and cut to 40 characters."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return ascii(text if len(text) <= 40 else text[:37] + "...")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what goes wrong while `where` is read into a UserError that names it."""
    try:
        yield
    except PermissionError:
        raise UserError(f"{where} cannot be read: permission denied; make it readable (chmod u+r)") from None
    except FileNotFoundError:
        raise UserError(f"{where} does not exist (any more), or is a link to nothing: put it back") from None
    except NotImplementedError as error:
        raise UserError(f"{where} is packed in a way that cannot be read ({_line(error)}): pack it again") from error
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{where} cannot be read: {error.strerror}") from error
        raise UserError(f"{where} is damaged ({_line(error)}): download or pack it again") from error
    except _DAMAGE as error:
        raise UserError(f"{where} is damaged or cut short ({_line(error)}): download or pack it again") from error
    except RuntimeError as error:  # zipfile's way to ask for a password
        raise UserError(f"{where} cannot be unpacked ({_line(error)}): pack it without a password") from error


class _Guarded(io.RawIOBase):
    def __init__(self, raw: _Readable, where: str, limit: Callable[[], int] | None) -> None:
        self.done = 0
        self._raw = raw
        self._where = where
        self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with reading(self._where):
            data = self._raw.read(len(buffer))
        count = len(data)
        buffer[:count] = data
        self.done += count
        if self._limit is not None and self.done > self._limit():
            raise UserError(f"{self._where} unpacks to over {self._limit():,} bytes, as only a bomb does: not read on")
        return count


def guarded(raw: _Readable, where: str, limit: Callable[[], int] | None = None) -> io.BufferedReader:
    """`raw`, with failures turned into UserErrors that name `where`, and not one byte beyond `limit()`."""
    return io.BufferedReader(_Guarded(raw, where, limit), 1 << 16)


class _Unopened(io.RawIOBase):
    def __init__(self, error: UserError) -> None:
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: Any, /) -> int:
        raise self._error


@contextmanager
def opened(open_: Callable[[], IO[bytes]], where: str) -> Iterator[io.BufferedReader]:
    """What `open_` opens, guarded; if that fails, a stream that fails when it is read, so that others still can be."""
    failure = None
    try:
        with reading(where):
            file = open_()
    except UserError as error:
        failure = error
    if failure is not None:
        yield io.BufferedReader(_Unopened(failure))
        return
    with file:
        yield guarded(file, where)


def unpacked(packed: _Readable, where: str) -> io.BufferedReader:
    """What the .gz, .xz or .bz2 stream `packed` holds; the same bytes if its magic is none of these."""
    counted = _Guarded(packed, where, None)
    stream: io.BufferedReader = io.BufferedReader(counted, 1 << 16)
    magic = stream.peek(6)[:6]

    def limit() -> int:
        return max(FREE_BYTES, MAX_RATIO * counted.done)

    if magic.startswith(b"\x1f\x8b"):
        return guarded(gzip.GzipFile(fileobj=stream), where, limit)
    if magic == b"\xfd7zXZ\x00":
        return guarded(lzma.LZMAFile(stream), where, limit)
    if magic.startswith(b"BZh"):
        return guarded(bz2.BZ2File(stream), where, limit)
    return stream


def check_ratio(unpacked_size: int, packed_size: int, where: str) -> None:
    """Raise UserError when a declared size is one that only a bomb has."""
    if unpacked_size > max(FREE_BYTES, MAX_RATIO * packed_size):
        raise UserError(
            f"{where} claims to unpack from {packed_size:,} to {unpacked_size:,} bytes, as only a bomb does: not read"
        )


def overlapped(work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """`map(work, items)` on a few threads, results in order; reading `items` goes on meanwhile, a few items ahead."""
    workers = max(2, min(8, os.cpu_count() or 1))
    with ThreadPoolExecutor(workers, "fer-read") as pool:
        pending: deque[Future[_R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return shown(text[:120])
