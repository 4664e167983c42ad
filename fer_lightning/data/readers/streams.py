"""Byte streams for untrusted files: errors become UserErrors, and decompression is bounded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import IO, Any

from fer_lightning.errors import UserError, flat

FREE_BYTES = 64 << 20
"""Up to this size, decompressed content may have any ratio to the compressed."""

MAX_RATIO = 50
"""Largest ratio of decompressed to compressed content beyond `FREE_BYTES`; FER-2013 reaches 4."""

BUFFER = 1 << 16

# What decompressors and archive modules raise on damaged bytes. ValueError, LookupError, OverflowError, MemoryError (an
# absurd declared size) and RecursionError (chained long names in a tar) are among it.
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

_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {  # by the first bytes of the content
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Convert errors raised while `where` is read into a UserError that names it."""
    try:
        yield
    except PermissionError:
        raise UserError(f"{where} cannot be read: permission denied; make it readable (chmod u+r)") from None
    except FileNotFoundError:
        raise UserError(f"{where} does not exist (any more), or is a link to nothing: restore it") from None
    except NotImplementedError as error:
        raise UserError(f"{where} is compressed by an unsupported method ({flat(error)}): pack it again") from error
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{where} cannot be read: {error.strerror}") from error
        raise UserError(f"{where} is damaged ({flat(error)}): download or pack it again") from error
    except _DAMAGE as error:
        raise UserError(f"{where} is damaged or truncated ({flat(error)}): download or pack it again") from error
    except RuntimeError as error:  # how zipfile asks for a password
        raise UserError(f"{where} cannot be unpacked ({flat(error)}): pack it without a password") from error


class _Stream(io.RawIOBase):
    """A file that is opened at the first read, so that one that cannot be opened fails like one that cannot be read."""

    def __init__(self, open_: Callable[[], IO[bytes]], where: str, compressed: IO[bytes] | None) -> None:
        self._open, self._where, self._compressed = open_, where, compressed

    @cached_property
    def _file(self) -> IO[bytes]:
        with reading(self._where):
            return self._open()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        with reading(self._where):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self._compressed is not None:
            limit = max(FREE_BYTES, MAX_RATIO * self._compressed.tell())
            if self._file.tell() > limit:
                raise UserError(
                    f"{self._where} decompresses to over {limit:,} bytes, as only a bomb does: remove this file"
                )
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Seek forwards by reading, since what is skipped may be a bomb as well."""
        assert whence == io.SEEK_SET
        if offset < self.tell() or self._compressed is None:
            with reading(self._where):
                return self._file.seek(offset)
        while self.tell() < offset and self.read(min(offset - self.tell(), 1 << 20)):
            pass
        return self.tell()

    def close(self) -> None:
        if "_file" in self.__dict__:
            self._file.close()
        super().close()


def opened(open_: Callable[[], IO[bytes]], where: str) -> io.BufferedReader:
    """The file that `open_` returns; opening and reading it raise UserErrors that name `where`, at the first read."""
    return io.BufferedReader(_Stream(open_, where, None), BUFFER)


def decompressed(file: io.BufferedReader, where: str) -> io.BufferedReader:
    """The content of a .gz, .xz or .bz2 file, recognised by its first bytes; any other file unchanged.

    Reading raises a UserError that names `where` if the content is damaged or a decompression bomb.
    """
    with reading(where):
        start = file.peek(6)[:6]
    for magic, decompressor in _DECOMPRESSORS.items():
        if start.startswith(magic):
            return io.BufferedReader(_Stream(partial(decompressor, file), where, file), BUFFER)
    return file


def check_ratio(size: int, compressed_size: int, where: str) -> None:
    """Raise UserError if the declared size is one that only a decompression bomb has."""
    if size > max(FREE_BYTES, MAX_RATIO * compressed_size):
        raise UserError(
            f"{where} claims to decompress from {compressed_size:,} to {size:,} bytes, as only a bomb does: remove it"
        )
