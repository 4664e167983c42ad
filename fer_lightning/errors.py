"""The exception for bad input and configuration, and how its messages show names and values."""

from __future__ import annotations

import os


class UserError(Exception):
    """Bad input or configuration, which the user can correct.

    The message is one line: what is wrong, the file, row or key, and the remedy. The entry points print it without a
    traceback and exit with code 1; any other exception is a defect of this project.
    """


def printable(name: str | os.PathLike[str]) -> str:
    """A file name for a message of one line: unchanged if it can be printed, otherwise escaped."""
    text = os.fspath(name)
    return text if text.isprintable() else ascii(text)[1:-1]


def quoted(value: str | bytes) -> str:
    """A value read from a file, for a message: quoted, escaped and cut to 40 characters."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def flat(error: BaseException, length: int = 120) -> str:
    """The text of an exception on one line of at most `length` characters, or its type if there is none."""
    return printable((" ".join(str(error).split()) or type(error).__name__)[:length])
