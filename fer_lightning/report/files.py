"""Writing files atomically."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from fer_lightning.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader, and no crash, ever sees part of it.

    Raises:
        OSError: the file, which the error names, cannot be written; an earlier version of it is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:  # has a file name only if opening failed
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def folder_name(name: str) -> str:
    """What is left of a model's name, which a stranger may have chosen, as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"


def check_writable(out: Path) -> None:
    """Create the folder given by `--out`, and see that files can be written there, before the work that fills it.

    Raises:
        UserError: they cannot.
    """
    write_folder(out, {".probe": b""})
    (out / ".probe").unlink(missing_ok=True)


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name into the folder given by `--out`, which is created if necessary.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot be written ({error.strerror}); choose another folder with --out"
        ) from error
