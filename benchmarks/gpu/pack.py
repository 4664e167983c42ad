"""FER-2013 in 52 MiB without loss, and wheels, to be carried to a machine without a network.

    python benchmarks/gpu/pack.py pack fer2013.csv.gz PACK     # here
    pip install --no-index --no-deps PACK/wheels/*.whl         # there, Python 3.12 on x86_64 by default
    export PYTHONPATH=$PWD:$PYTHONPATH                         # fer-lightning itself is not installed
    python benchmarks/gpu/pack.py unpack PACK fer2013.csv

Each different face once, side by side in a few images of JPEG 2000. No method gets far below, since the noise of the
pixels takes about five bits each. Of 1,980 faces, in megabytes for all 35,887: 52.5 by JPEG XL, 53.9 by JPEG-LS, 57.2
by JPEG 2000, 57.7 by WebP, 60.9 by PNG, 82.7 without compression. JPEG 2000 is the smallest that Pillow reads.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_lightning.data.readers import sources

ROW = 48
"""Faces of a row in an image."""

USAGES = {"train": "Training", "public": "PublicTest", "private": "PrivateTest"}

BINARY = [
    *("annotated-types", "hydra-core", "omegaconf", "platformdirs", "pydantic", "pydantic-core", "typing-inspection"),
]
SOURCE = ["antlr4-python3-runtime"]
"""What a machine with torch, lightning and the scientific packages lacks for a run with `logger=csv`."""

BALANCED = ["albucore", "albumentations", "simsimd", "stringzilla"]
"""What imbalance=balanced needs as well, 5 MiB: in a folder of their own, to be left behind if there is a limit."""


def mosaic(faces: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Faces (N, S, S), N a multiple of `ROW`, side by side."""
    n, size = len(faces), faces.shape[1]
    return faces.reshape(n // ROW, ROW, size, size).swapaxes(1, 2).reshape(n // ROW * size, ROW * size)


def cut(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `mosaic`."""
    size = image.shape[1] // ROW
    return image.reshape(-1, size, ROW, size).swapaxes(1, 2).reshape(-1, size, size)


def pack(source: str, folder: Path, images: int = 4) -> None:
    """Write the faces of `source`, a CSV of FER-2013, in so many images, and their labels."""
    faces = sources.load(source)
    order = np.concatenate([faces.rows(split) for split in USAGES])
    pixels, labels = faces.images[order], faces.labels[order]
    folder.mkdir(parents=True, exist_ok=True)
    different, which = np.unique(pixels, axis=0, return_inverse=True)
    padded = np.concatenate([different, np.zeros((-len(different) % ROW, *pixels.shape[1:]), np.uint8)])
    for number, rows in enumerate(np.array_split(np.arange(len(padded) // ROW), images)):
        part = padded[rows[0] * ROW : (rows[-1] + 1) * ROW]
        Image.fromarray(mosaic(part)).save(folder / f"{number}.jp2", irreversible=False)
    about = {
        "labels": labels.tolist(),
        "which": which.tolist(),
        "faces": {usage: len(faces.rows(split)) for split, usage in USAGES.items()},
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
    }
    (folder / "labels.json").write_text(json.dumps(about))


def unpack(folder: Path, to: Path) -> None:
    """Write the CSV of a pack, its rows ordered by split.

    Raises:
        SystemExit: the pixels are not those that were packed.
    """
    about = json.loads((folder / "labels.json").read_text())
    labels = about["labels"]
    Image.MAX_IMAGE_PIXELS = None
    parts = [np.asarray(Image.open(folder / f"{i}.jp2")) for i in range(len(list(folder.glob("*.jp2"))))]
    different = np.concatenate([cut(part) for part in parts])
    which = np.array(about["which"])
    pixels = different[which] if which.max() < len(different) else different
    if hashlib.sha256(pixels.tobytes()).hexdigest() != about["sha256"]:
        raise SystemExit(f"{folder}: other pixels than were packed; carry it again")
    usages = [usage for usage, n in about["faces"].items() for _ in range(n)]
    with to.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for label, face, usage in zip(labels, pixels, usages, strict=True):
            writer.writerow([label, " ".join(map(str, face.ravel())), usage])


def wheels(folder: Path, python: str) -> None:
    """Download wheels of the versions installed here, for a version of Python, and build those that have none."""
    pip = [sys.executable, "-m", "pip"]
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014")]
    chosen = [f"--python-version={python}", "--implementation=cp", *platforms]
    download = [*pip, "download", "--no-deps", "--only-binary=:all:", *chosen, "--dest"]
    build = [*pip, "wheel", "--no-deps", "--wheel-dir"]
    for command, to, names in (
        (download, folder / "wheels", BINARY),
        (download, folder / "wheels-balanced", BALANCED),
        (build, folder / "wheels", SOURCE),
    ):
        subprocess.run([*command, str(to), *(f"{name}=={version(name)}" for name in names)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("source")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--python", default="3.12", help="of the other machine")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("folder", type=Path)
    unpacking.add_argument("to", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.source, arguments.folder)
        wheels(arguments.folder, arguments.python)
        size = sum(file.stat().st_size for file in arguments.folder.rglob("*") if file.is_file())
        print(f"{arguments.folder}: {size / 2**20:.1f} MiB")
    else:
        unpack(arguments.folder, arguments.to)


if __name__ == "__main__":
    main()
