"""Small generated data sets, in every format."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fer_lightning.data.readers.sources import load
from fer_lightning.data.table import FaceTable

Files = dict[str, bytes]

USAGES = ("Training", "PublicTest", "PrivateTest")


def faces(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 48, 48), dtype=np.uint8)


def pixel_text(face: NDArray[np.uint8]) -> str:
    return " ".join(map(str, face.ravel()))


def csv_bytes(rows: list[dict[str, object]], columns: str = "emotion,pixels,Usage", end: str = "\n") -> bytes:
    """A CSV with values by the stripped, lower-cased names of the columns."""
    lines = [",".join(str(row[c.strip().lower()]) for c in columns.split(",")) for row in rows]
    return (end.join([columns, *lines]) + end).encode()


def fer_rows(n: int = 21) -> list[dict[str, object]]:
    """Rows of all classes and, in turn, all splits."""
    return [
        {"emotion": i % 7, "pixels": pixel_text(face), "usage": USAGES[(i // 7) % 3]} for i, face in enumerate(faces(n))
    ]


def image_bytes(face: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(face).save(buffer, kind)
    return buffer.getvalue()


def folder_files(classes: Mapping[str, int] | None = None, splits: tuple[str, ...] = ("train", "test")) -> Files:
    """<split>/<class>/<i>.png, with the given number per class."""
    classes = {"happy": 2, "sad": 1, "angry": 1} if classes is None else classes
    names = [f"{s}/{c}/{i}.png" for s in splits for c, n in classes.items() for i in range(n)]
    return {name: image_bytes(face) for name, face in zip(names, faces(len(names)), strict=True)}


def write_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: Files, packing: str = "") -> Path:
    with tarfile.open(path, f"w:{packing}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_form(path: Path, files: Files, form: str) -> Path:
    """`files` as a directory, .zip, or .tar with or without compression."""
    if form == "folder":
        return write_folder(path, files)
    if form == "zip":
        return write_zip(path, files)
    return write_tar(path, files, form.partition(".")[2])


FORMS = ("folder", "zip", "tar", "tar.gz", "tar.xz", "tar.bz2")

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


@pytest.fixture(scope="session")
def real_csv(fer2013_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FaceTable:
    """The challenge's CSV, read once."""
    return load(fer2013_dir / "fer2013.csv.gz", cache_dir=tmp_path_factory.mktemp("real"))
