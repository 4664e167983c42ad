"""Files on other machines, by any protocol that fsspec knows: https://, s3://, gs://, ftp:// and so on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fer_lightning.errors import UserError, flat, printable

log = logging.getLogger(__name__)

MAX_BYTES = 16 << 30
"""Size of the largest file that is downloaded."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")

# What file systems report that changes with the content: HTTP servers, S3 and GCS, Azure, FTP and SFTP.
_VERSION = ("size", "ETag", "Last-Modified", "LastModified", "Content-MD5", "etag", "last_modified", "modify", "mtime")


def is_url(path: str) -> bool:
    """Whether `path` names a file by protocol and address."""
    return _URL.match(path) is not None


def source_name(path: str | os.PathLike[str]) -> str:
    """The last part of a path or URL, as a name for a folder of results."""
    text = os.fspath(path)
    if not is_url(text):
        return Path(os.path.abspath(text)).name
    return re.sub(r"[^\w.-]", "_", posixpath.basename(text.partition("?")[0].rstrip("/"))).lstrip(".") or "file"


def download(url: str, cache_root: Path) -> Path:
    """A copy of the file at `url` under `cache_root`, downloaded if there is none or the file has changed since.

    Credentials are the user's own, found by the protocol's package as always (for S3, ~/.aws or AWS_ACCESS_KEY_ID).
    The copy is complete: it is renamed when the download has ended. Where the file cannot be reached, an earlier copy
    serves, with a warning.

    Raises:
        UserError: the protocol is unknown or its package missing, the file cannot be reached or is too large, or the
            cache cannot be written.
    """
    import fsspec

    where = f"data.path {printable(url)}"
    if "::" in url:
        raise UserError(f"{where}: chained file systems are not supported; give the address of the file itself")
    folder = cache_root / "downloads" / hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()[:32]
    copy = folder / source_name(url)
    note = folder / "version.json"
    try:
        files, remote_path = fsspec.url_to_fs(url, **_options(url))
    except (ImportError, ValueError) as error:  # of both, the message says what to install or which protocols there are
        raise UserError(f"{where}: {flat(error)}") from error
    try:
        info = files.info(remote_path)
        version = json.dumps({key: str(info[key]) for key in _VERSION if info.get(key) is not None})
        with suppress(OSError):
            if copy.is_file() and version != "{}" and note.read_text(encoding="utf-8") == version:
                return copy
        if info.get("type") == "directory":
            raise UserError(f"{where} is a folder: pack it into a .zip or .tar, or download it and give its local path")
        log.warning("downloading %s", printable(url))
        _fetch(files, remote_path, copy, where)
    except UserError:
        raise
    except Exception as error:  # each protocol's package has exceptions of its own
        missing = isinstance(error, FileNotFoundError)
        if missing and isinstance(cause := error.__cause__, OSError):  # fsspec's for a server that cannot be reached
            missing, error = isinstance(cause, FileNotFoundError), cause
        reason = "there is no such file" if missing else flat(error)
        if copy.is_file():
            log.warning("%s cannot be reached (%s): using the copy in %s", where, reason, folder)
            return copy
        raise UserError(
            f"{where} cannot be downloaded ({reason}): check address, network and credentials, or give a local path"
        ) from error
    with suppress(OSError):  # without it, the file is downloaded again the next time
        note.write_text(version, encoding="utf-8")
    return copy


def _fetch(files: Any, remote_path: str, copy: Path, where: str) -> None:
    from fsspec.callbacks import Callback

    class Bounded(Callback):  # type: ignore[misc]
        def call(self, *_: object, **__: object) -> None:
            if self.value > MAX_BYTES or (self.size or 0) > MAX_BYTES:
                raise UserError(f"{where} is larger than {MAX_BYTES:,} bytes: give the data set itself")

    partial = copy.with_name(f".{uuid.uuid4().hex}")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise UserError(
            f"{where}: cannot be kept in {copy.parent} ({error.strerror}): set data.cache_dir to a writable folder"
        ) from error
    try:
        files.get_file(remote_path, str(partial), callback=Bounded())
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)


def _options(url: str) -> Mapping[str, Any]:
    if not url.lower().startswith(("http://", "https://")):
        return {}
    import aiohttp

    # Instead of aiohttp's five minutes for everything: a download may take long as long as it proceeds.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}  # trust_env: proxies
