"""The files of the page: what is shipped here, the network, and what the page has to know about it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from fer_lightning.errors import UserError, printable
from fer_lightning.inference.demo.libraries import LIBRARIES, NOTICES, read
from fer_lightning.inference.faces.download import HOSTS
from fer_lightning.inference.faces.frame import CUT, SMALL, TURNED
from fer_lightning.inference.onnxfile import Session
from fer_lightning.report.files import write_atomically

ASSETS = "assets"
"""Folder of the libraries, if they do not come from a CDN."""

README = "README.md"

_POLICY = (
    "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'{hosts}; base-uri 'none'; form-action 'none'"
)


def build(model: Path, folder: Path, *, assets: Path | None = None) -> None:
    """Write the page as static files, for GitHub Pages or a static Space of Hugging Face.

    Args:
        model: a network exported as ONNX.
        folder: an empty or new folder, or one with an earlier build. Hidden files stay, as do README.md and CNAME.
        assets: folder of the libraries, which are then part of the site; None to load them from a CDN.

    Raises:
        UserError: `model` is not such a network, `folder` is a file, holds other files or cannot be written, or a
            library is missing.
    """
    files = site(model, assets)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; the page is written to a folder")
    of_assets = ("NOTICES.txt", *(library.name for library in LIBRARIES.values()))  # an earlier build may have them
    known = {*files, README, *(f"{ASSETS}/{name}" for name in of_assets)}
    for path in folder.rglob("*"):
        name, is_hidden = path.relative_to(folder).as_posix(), any(p[0] == "." for p in path.relative_to(folder).parts)
        if path.is_file() and name not in known and name != "CNAME" and not is_hidden:
            raise UserError(f"{folder}: holds {printable(name)}, no file of this page; choose an empty folder")
    if not (folder / README).exists():
        files[README] = _readme(json.loads(files["model.json"])).encode()
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, content)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def site(model: Path, assets: Path | None = None) -> dict[str, bytes]:
    """The page's files by name; arguments and errors are those of `build`."""
    description = describe(model)
    files = {
        path.name: path.read_bytes()
        for path in (resources.files("fer_lightning.inference.demo") / "page").iterdir()
        if path.is_file()
    }
    description["libraries"] = {
        role: {
            "urls": [f"{ASSETS}/{lib.name}"] if assets else [f"{host}{lib.package}/{lib.path}" for host in HOSTS],
            "integrity": lib.integrity,
            "megabytes": lib.megabytes,
        }
        for role, lib in LIBRARIES.items()
    }
    if assets:
        files |= {f"{ASSETS}/{library.name}": read(library, assets) for library in LIBRARIES.values()}
        files[f"{ASSETS}/NOTICES.txt"] = NOTICES.encode()
    packages = sorted({library.package for library in LIBRARIES.values()})
    hosts = "" if assets else "".join(f" {host}{package}/" for host in HOSTS for package in packages)
    policy = html.escape(_POLICY.format(hosts=hosts), quote=True)
    files["index.html"] = files["index.html"].replace(b"{policy}", policy.encode())
    files["model.json"] = json.dumps(description, ensure_ascii=False, indent=1).encode()
    files["model.onnx"] = model.read_bytes()
    return files


def describe(model: Path) -> dict[str, Any]:
    """What the page has to know about a network: onnxruntime-web does not give the file's metadata.

    Returns:
        `name`, `classes`, `size`, `threshold`, `crop` (rule of the detector BlazeFace), `limits` beyond which an answer
        deserves less trust, and `scores`.

    Raises:
        UserError: onnxruntime is missing, or `model` is not a network that this project has exported.
    """
    own = Session(model, threads=1).description
    rule = own.crop.get("blaze")
    if rule is None:
        raise UserError(f"{model}: it has no crop rule for blaze, the page's detector; export it again")
    return {
        "name": own.name,
        "classes": own.classes,
        "size": own.size,
        "threshold": own.calibration.threshold,
        "crop": {"side": rule.side, "shift": rule.shift},
        "limits": {"small": SMALL, "cut": CUT, "turned": TURNED},
        "scores": own.scores,
    }


def _readme(description: Mapping[str, Any]) -> str:
    """For people, with the header that a Space of Hugging Face wants."""
    return f"""---
title: Facial expressions in the browser
sdk: static
app_file: index.html
pinned: false
---

# Facial expressions in the browser

Finds faces in a photo or in the picture of a webcam, and shows the probabilities of their expressions. All of it runs
in the browser; pictures are not sent anywhere. The network is `{description["name"]}`; `model.json` has its scores.

Written by `fer-lightning demo --build`. Any web server can serve this folder, GitHub Pages and a static Space among
them. Browsers do not run it from a file. Cameras need https, except on this computer (127.0.0.1).

An expression is not a feeling. In the EU, inferring emotions at work and in schools is prohibited (AI Act, Article 5).
"""
