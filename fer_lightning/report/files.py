"""Writing files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fer_lightning.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it.

    Raises:
        OSError: it cannot be written, and has its name; a file that was there before stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:  # which has the name only where the file could not be opened
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name into a folder that `--out` names, which is made where there is none.

    Raises:
        UserError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot be written ({error.strerror}); name a folder by --out"
        ) from error
