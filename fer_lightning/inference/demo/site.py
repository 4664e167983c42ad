"""The files of the page: what is shipped here, the network, and what the page has to know about it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from fer_lightning.errors import UserError, flat, printable
from fer_lightning.inference.demo.libraries import HOSTS, LIBRARIES, read
from fer_lightning.report.files import write_atomically

KEY = "fer_lightning"
"""Key of the JSON in the metadata of an exported network."""

FORMAT = 1
"""Version of that JSON which the page understands."""

INPUT, OUTPUT = "faces", "probabilities"
"""The network's input, uint8 (N, size, size), and output, float32 (N, C)."""

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
        folder: an empty or new folder, or one with an earlier build. Files of git stay, as does a README.md.
        assets: folder of the libraries, which are then part of the site; None to load them from a CDN.

    Raises:
        UserError: `model` is not such a network, `folder` is a file, holds other files or cannot be written, or a
            library is missing.
    """
    files = site(model, assets)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; the page is written to a folder")
    known = {*files, README, *(f"{ASSETS}/{library.name}" for library in LIBRARIES.values())}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in known and not name.startswith(".git"):
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
        `name`, `classes`, `size`, `threshold`, `crop` (rule of the detector BlazeFace) and `scores`.

    Raises:
        UserError: onnxruntime is missing, or `model` is not a network that this project has exported.
    """
    try:
        onnxruntime = import_module("onnxruntime")  # an extra
    except ImportError:
        raise UserError("onnxruntime is not installed: pip install 'fer-lightning[onnx]'") from None
    if not model.is_file():
        raise UserError(f"{model}: no such file; `fer-lightning export` writes one")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common type for its errors
        raise UserError(f"{model}: damaged, or not an ONNX file ({flat(error)}); export it again") from None
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    names = [node.name for node in (*session.get_inputs(), *session.get_outputs())]
    if text is None or names != [INPUT, OUTPUT]:
        raise UserError(f"{model}: an ONNX file, but not one that `fer-lightning export` wrote")
    try:
        own = json.loads(text)
        if own["format"] != FORMAT:
            raise UserError(
                f"{model}: has format {own['format']}, the demo reads {FORMAT}: export it with this version"
            )
        return _selected(own)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{model}: its description is damaged or incomplete ({flat(error)}); export it again") from None


def _selected(own: Mapping[str, Any]) -> dict[str, Any]:
    calibration = own.get("calibration", own)
    rule = own["crop"]["blaze"]
    return {
        "name": str(own["name"]),
        "classes": [str(name) for name in own["classes"]],
        "size": int(own["size"]),
        "threshold": float(calibration["threshold"]),
        "crop": {"side": float(rule["side"]), "shift": float(rule["shift"])},
        "scores": {str(name): float(value) for name, value in own.get("scores", {}).items()},
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
