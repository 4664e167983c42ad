"""The files of other projects that the page runs: pinned by version and digest, from a CDN or from a folder."""

from __future__ import annotations

import base64
import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from fer_lightning.errors import UserError, flat
from fer_lightning.inference.faces.download import BLAZE_PACKAGE, FILES


@dataclass(frozen=True)
class Library:
    """A file of an npm package.

    Attributes:
        package: name and version.
        path: the file within the package.
        sha256: hexadecimal digest of the file.
        megabytes: what the page announces before it loads the file.
    """

    package: str
    path: str
    sha256: str
    megabytes: float

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def integrity(self) -> str:
        """The digest as browsers want it (W3C, Subresource Integrity)."""
        return f"sha256-{base64.b64encode(bytes.fromhex(self.sha256)).decode()}"


_ORT = "onnxruntime-web@1.30.0"  # MIT

LIBRARIES = {
    "runtime": Library(
        _ORT,
        "dist/ort.wasm.bundle.min.mjs",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        0.1,
    ),
    "wasm": Library(
        _ORT,
        "dist/ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
        14.2,
    ),
    "blaze": Library(
        BLAZE_PACKAGE,
        FILES["blaze"].filename,
        FILES["blaze"].sha256,
        1.1,
    ),
}
"""The JavaScript of the runtime, its WebAssembly, and the face detector."""

NOTICES = f"""\
The files beside this one are copies of those in packages on npm:

{_ORT}: copyright Microsoft Corporation, MIT License.
https://github.com/microsoft/onnxruntime/blob/main/LICENSE

{BLAZE_PACKAGE}: copyright The MediaPipe Authors, Apache License 2.0.
https://github.com/google-ai-edge/mediapipe/blob/master/LICENSE
"""
"""Whose the libraries are, for a site that contains them."""


def read(library: Library, folder: Path) -> bytes:
    """A library from a folder: the file itself, anywhere below it, or the package as `npm pack` leaves it.

    Raises:
        UserError: it is not there, or is another version.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --assets is where the libraries lie")
    packages = " ".join(dict.fromkeys(one.package for one in LIBRARIES.values()))
    remedy = f"run `npm pack {packages}` there"
    problem, damaged = "does not contain", []
    for path in [*sorted(folder.rglob(library.name)), *sorted(folder.glob("*.tgz"))]:
        try:
            content = _packed(path, library) if path.suffix == ".tgz" else path.read_bytes() if path.is_file() else None
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            damaged.append(f"{path.name} ({flat(error)})")
            continue
        if content is not None and hashlib.sha256(content).hexdigest() == library.sha256:
            return content
        if content is not None:
            problem = "has another version of"
    if damaged:
        problem, remedy = f"has damaged files, {', '.join(damaged)}, and no good", f"remove them, and {remedy}"
    raise UserError(f"{folder} {problem} {library.name}: {remedy}")


def _packed(path: Path, library: Library) -> bytes | None:
    """The library in a package of npm; None if the package is another one."""
    with tarfile.open(path) as archive:
        if f"package/{library.path}" not in archive.getnames():
            return None
        file = archive.extractfile(f"package/{library.path}")
        return file.read() if file else None
