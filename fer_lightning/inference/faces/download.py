"""The file of BlazeFace, which is downloaded when asked for, checked, and kept in the cache."""

from __future__ import annotations

import hashlib
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fer_lightning.data.readers.cache import default_root
from fer_lightning.errors import UserError, flat, printable, quoted


@dataclass(frozen=True)
class ModelFile:
    """A file that can be downloaded.

    Attributes:
        filename: its name in the cache.
        size: number of its bytes.
        sha256: their digest.
        addresses: where it is, in the order in which they are tried.
    """

    filename: str
    size: int
    sha256: str
    addresses: tuple[str, ...]


BLAZE_PACKAGE = "@mediapipe/face_detection@0.4.1657300184"
"""Google's own package on npm; Apache-2.0."""

HOSTS = ("https://cdn.jsdelivr.net/npm/", "https://unpkg.com/")
"""Public CDNs of npm's packages; the second one is for where the first is unreachable."""

FILES = {
    "blaze": ModelFile(
        "face_detection_full_range.tflite",
        1_083_984,
        "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
        tuple(f"{host}{BLAZE_PACKAGE}/face_detection_full_range.tflite" for host in HOSTS),
    )
}

TIMEOUT_S = 20
"""Seconds without an answer after which an address is given up."""


def installed(name: str = "blaze") -> Path | None:
    """The file in the cache; None if there is none.

    Raises:
        UserError: there is one, but of other content.
    """
    path, file = cached_path(name), FILES[name]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{printable(path)}: {flat(error)}") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise UserError(f"{printable(path)} is damaged: run `fer-lightning download {name}` again, or remove it")
    return path


def cached_path(name: str = "blaze") -> Path:
    """Where the file is in the cache, or will be: below FER_LIGHTNING_CACHE or the user's cache folder."""
    return default_root() / "models" / FILES[name].filename


def download(name: str = "blaze", *, source: Path | None = None) -> Path:
    """Put a model file into the cache, and return its path; nothing is done if it is there.

    Args:
        name: "blaze".
        source: the file, obtained by other means; None to download it.

    Raises:
        UserError: there is no file of that name, no address can be reached, the content is not the expected one, or
            the cache cannot be written. Nothing is kept then.
    """
    if name not in FILES:
        raise UserError(f"{quoted(name)} cannot be downloaded: use {', '.join(FILES)}")
    if source is None:
        with suppress(UserError):  # a damaged one is replaced
            if path := installed(name):
                return path
    path, data = cached_path(name), _read(source, FILES[name]) if source else _fetch(name)
    part = path.with_name(f".{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(
            f"{printable(path)} cannot be written ({flat(error)}): set FER_LIGHTNING_CACHE to a writable folder"
        ) from error
    return path


def _read(source: Path, file: ModelFile) -> bytes:
    try:
        with source.open("rb") as stream:
            data = stream.read(file.size + 1)
    except OSError as error:
        raise UserError(f"{printable(source)}: {flat(error)}") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise UserError(
            f"{printable(source)} is not {file.filename} (sha256 {file.sha256}): get it from {file.addresses[0]}"
        )
    return data


def _fetch(name: str) -> bytes:
    """The bytes from the first address that gives the expected ones."""
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    file, failures = FILES[name], []
    for address in file.addresses:
        try:
            request = Request(address, headers={"User-Agent": "fer-lightning"})
            with urlopen(request, timeout=TIMEOUT_S) as answer:
                data = bytes(answer.read(file.size + 1))
        except (OSError, HTTPException) as error:
            failures.append(f"{address}: {flat(error)}")
            continue
        if hashlib.sha256(data).hexdigest() == file.sha256:
            return data
        failures.append(f"{address}: not the expected file (sha256)")
    raise UserError(
        f"{name} cannot be downloaded ({'; '.join(failures)}): get {file.addresses[0]} by other means and run "
        f"`fer-lightning download {name} --from FILE`, or put it at {printable(cached_path(name))}"
    )
