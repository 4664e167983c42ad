"""Folders of faces: train/<class>/<image>, test/<class>/<image>, and optionally a validation folder."""

from __future__ import annotations

import io
import logging
import os
import re
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from fer_lightning.data.labels import class_name, class_order, split_name
from fer_lightning.data.readers.archive import Archive
from fer_lightning.data.readers.flaws import Flaws, noted
from fer_lightning.data.readers.images import decode
from fer_lightning.data.table import FER_CLASSES, SIDE, SPLITS, FaceTable
from fer_lightning.errors import UserError, printable, quoted

log = logging.getLogger(__name__)

MAX_IMAGE_BYTES = 64 << 20
"""Size of the largest image file that is read."""

_BATCH = 64  # images decoded together: decoding one costs less than passing it to a thread
_SMALL = 1 << 17  # bytes of the largest image in such a batch
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


@dataclass(frozen=True)
class Layout:
    """The images with their labels and splits.

    Attributes:
        names: members of the archive that are images, sorted.
        labels: of each image, the index into `classes`.
        splits: of each image, the index into `SPLITS`.
        classes: class names in label order.
    """

    names: list[str]
    labels: list[int]
    splits: list[int]
    classes: tuple[str, ...]

    def read(self, archive: Archive, fingerprint: str, flaws: Flaws | None = None) -> FaceTable:
        """The faces, sorted by name, as 48 by 48 grey images.

        Args:
            archive: where they are.
            fingerprint: of the content.
            flaws: records the faults of single files, which are then no errors.

        Raises:
            UserError: a member is no image, damaged or too large, and `flaws` is not given.
        """
        row_of = {name: row for row, name in enumerate(self.names)}
        images = np.zeros((len(row_of), SIDE, SIDE), dtype=np.uint8)

        def decode_batch(batch: list[tuple[str, bytes]]) -> None:
            for name, data in batch:
                row = row_of[name]
                with noted(flaws, row):
                    images[row], size = decode(data, archive.where(name))
                    if flaws is not None and min(size) < SIDE:
                        flaws.small[row] = size

        workers = max(2, min(8, os.cpu_count() or 1))
        with ThreadPoolExecutor(workers, "fer-read") as pool:
            pending: deque[Future[None]] = deque()
            batch: list[tuple[str, bytes]] = []
            for name, stream in archive.members(self.names):
                with noted(flaws, row_of[name]):
                    batch.append((name, _content(stream, archive.where(name))))
                if batch and (len(batch) == _BATCH or len(batch[-1][1]) > _SMALL):
                    pending.append(pool.submit(decode_batch, batch))
                    batch = []
                if len(pending) > 2 * workers:  # files are read only a few batches ahead
                    pending.popleft().result()
            for future in (*pending, pool.submit(decode_batch, batch)):
                future.result()
        return FaceTable(
            images=images,
            labels=np.array(self.labels, dtype=np.int64),
            split=np.array(self.splits, dtype=np.int8),
            ids=np.array([name.encode(errors="backslashreplace") for name in self.names]),
            classes=self.classes,
            source=archive.label,
            fingerprint=fingerprint,
        )


def find_layout(archive: Archive) -> Layout | None:
    """The layout of the class folders in `archive`; None if there is no train folder with class folders.

    Raises:
        UserError: there are several data sets, a class is empty or not in train, or an image is in no class folder.
    """
    root = _find_root(archive)
    if root is None:
        return None
    faces: dict[tuple[str, str], list[str]] = {  # (split folder, class folder) -> members; empty ones too
        (parts[0], parts[1]): [] for parts in (_below(root, f) for f in archive.folders) if _in_split(parts, 2)
    }
    for name in archive.names:
        parts = _below(root, name)
        if _in_split(parts, 3):
            faces.setdefault((parts[0], parts[1]), []).append(name)
        elif _in_split(parts, 2) and name.lower().endswith(_IMAGE_ENDINGS):
            target = f"{printable(parts[0])}/<class>/{printable(parts[1])}"
            raise UserError(f"{archive.where(name)} is in no class folder: move it to {target}")
    split_of = _unambiguous(archive, root, {folder: str(split_name(folder)) for folder, _ in faces})
    class_of = _class_names({folder for _, folder in faces})
    for split_folder in split_of:
        inside = {f"{split_folder}/{c}": class_of[c] for s, c in faces if s == split_folder}
        _unambiguous(archive, root, inside)
    trained = {class_of[c] for s, c in faces if split_of[s] == "train"}
    for (split_folder, folder), names in faces.items():
        where = archive.where(f"{root}{split_folder}/{folder}")
        if not names and split_of[split_folder] == "train":
            raise UserError(f"{where} contains no images: add some, or remove the class from all splits")
        if names and class_of[folder] not in trained:
            raise UserError(f"{where} has no counterpart in train/: add images of it there, or remove it")
    classes = class_order(trained)
    rows = sorted(
        (name, classes.index(class_of[folder]), SPLITS.index(split_of[split_folder]))
        for (split_folder, folder), names in faces.items()
        for name in names
    )
    names = [name for name, _, _ in rows]
    return Layout(names, [label for _, label, _ in rows], _split_test(names, [s for _, _, s in rows]), classes)


def _content(stream: io.BufferedReader, where: str) -> bytes:
    data = stream.read(_SMALL)
    if len(data) == _SMALL:  # a single read of the maximum would allocate it for every face
        data += stream.read(MAX_IMAGE_BYTES)
    if len(data) > MAX_IMAGE_BYTES:
        raise UserError(f"{where} is larger than {MAX_IMAGE_BYTES:,} bytes: this is no face; remove it")
    return data


def _find_root(archive: Archive) -> str | None:
    """The folder that contains train/, with a slash at the end: "" or "fer2013/"."""
    roots = set()
    for path in (*archive.folders, *(name.rpartition("/")[0] for name in archive.names)):
        parts = path.split("/")
        for depth, part in enumerate(parts[:-1]):  # the next part is the class folder
            if split_name(part) == "train":
                roots.add("".join(f"{p}/" for p in parts[:depth]))
                break
    if not roots:
        return None
    least = min(root.count("/") for root in roots)
    first, *others = sorted(root for root in roots if root.count("/") == least)
    if others:
        raise UserError(
            f"{archive.label} holds several data sets, {printable(first)} and {printable(others[0])}: set data.path to "
            "one of them"
        )
    return first


def _below(root: str, path: str) -> list[str]:
    return path.removeprefix(root).split("/") if path.startswith(root) else []


def _in_split(parts: list[str], depth: int) -> bool:
    return len(parts) >= depth and split_name(parts[0]) is not None


def _unambiguous(archive: Archive, root: str, meanings: dict[str, str]) -> dict[str, str]:
    folders: dict[str, list[str]] = defaultdict(list)
    for folder, meaning in sorted(meanings.items()):
        folders[meaning].append(folder)
    for meaning, same in folders.items():
        if len(same) > 1:
            where = archive.where(root + same[0])
            raise UserError(f"{where} and {printable(same[1])} both mean {quoted(meaning)}: merge them, or rename one")
    return meanings


def _class_names(folders: set[str]) -> dict[str, str]:
    """The class of each class folder; 0 to 6 are the labels of FER-2013 if there are no other folders."""
    names = {folder: class_name(folder) for folder in folders}
    if all(re.fullmatch("[0-6]", name) for name in names.values()):
        names = {folder: FER_CLASSES[int(name)] for folder, name in names.items()}
        meanings = ", ".join(f"{folder} = {name}" for folder, name in sorted(names.items()))
        log.warning("numbered class folders have FER-2013's meanings (%s): rename them if theirs are others", meanings)
    return names


def _split_test(names: list[str], splits: list[int]) -> list[int]:
    """`splits` with "test" divided into "public" and "private" if the name of every test image begins with its part."""
    parts: dict[int, int] = {}
    for row, split in enumerate(splits):
        if split == SPLITS.index("test"):
            match = re.match("(public|private)test_", PurePosixPath(names[row]).name, re.IGNORECASE)
            if match is None:
                return splits
            parts[row] = SPLITS.index(match[1].lower())
    return [parts.get(row, split) for row, split in enumerate(splits)]
