"""The labelled images that a model may be calibrated, checked and scored on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from fer_lightning.config.dataset import cache_root, load_parts_of, settings_of, with_duplicate_groups
from fer_lightning.data.protocols import Partition, ProtocolName, Rows, partition
from fer_lightning.data.readers import sources
from fer_lightning.data.table import SPLITS, FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference.description import Description
from fer_lightning.inference.predictor import LoadedModel
from fer_lightning.runs.folder import compare_partition


@dataclass(frozen=True)
class Labelled:
    """A table, its partition, and what they are.

    Attributes:
        faces: the table.
        parts: its partition.
        protocol: the config group `protocol`.
        digests: of the images and labels of each part.
        twins: "exact" or "near", what counts as the same image in the partition.
        merge: classes that were merged into others.
    """

    faces: FaceTable
    parts: Partition
    protocol: Mapping[str, Any]
    digests: Mapping[str, str]
    twins: str
    merge: Mapping[str, str]


def of_runs(
    run_dirs: Sequence[Path],
    *,
    remedy: str,
    data: str | os.PathLike[str] | None = None,
    cleaned: bool = False,
    trust: bool = False,
) -> Labelled:
    """The data of runs that are to be averaged, which must have validation and test images in common.

    Args:
        run_dirs: of the runs.
        remedy: for data that are missing or have changed.
        data: where they are now; by default where they were.
        cleaned: with the training set cleaned as the first run did.
        trust: see `fer_lightning.config.dataset.settings_of`.

    Raises:
        UserError: the data are missing or have changed, or the runs have other validation or test images.
    """
    first = run_dirs[0]
    settings = settings_of(first, trust=trust)
    if data is not None:
        settings["data"] = settings["data"] | {"path": os.fspath(data)}
        trust = True  # to download what was named just now
    loaded = load_parts_of(first, settings, cleaned=cleaned, trust=trust, remedy=remedy)
    for other in run_dirs[1:]:  # otherwise one may have been trained on what another is scored on
        same = {name: loaded.digests[name] for name in ("val", "test")}
        compare_partition(
            other, loaded.faces.source, same, f"or name only runs of the same data and protocol as {first}"
        )
    own = settings["data"]
    return Labelled(
        loaded.faces, loaded.parts, settings["protocol"], loaded.digests, own["twins"], own.get("merge") or {}
    )


def of_file(data: str, description: Description, path: Path) -> Labelled:
    """The data that a model file was made with, read again.

    Raises:
        UserError: they cannot be read, or are not the same.
    """
    found = _made_with(sources.load(data), description)
    if found is None:
        raise UserError(
            f"{data}: its validation and test images are not those that {path} was made with; name the same data, or "
            "leave --data out"
        )
    return found


@dataclass(frozen=True)
class Split:
    """A split that models are scored on.

    Attributes:
        faces: the table.
        rows: of the split.
        parts: the partition used to train the models; None for data not their own.
        protocol: name of its protocol; None for other data.
    """

    faces: FaceTable
    rows: Rows
    parts: Partition | None
    protocol: ProtocolName | None


def split_of(
    loaded: Sequence[LoadedModel], data: str | os.PathLike[str] | None, split: str, *, remedy: str, trust: bool
) -> Split:
    """The images of a split of the models' own data, or of other data.

    Args:
        loaded: the models.
        data: a source of other faces, labelled with classes that the models know; required for model files, whose own
            partition is used if they were made with these data.
        split: "train", "val" or "test" by the models' protocol, "all", or a split of the source such as "private". Of
            other data, "test" means its test images, or all of it where it has none. Data are the models' own if their
            validation and test images are, wherever they lie.
        remedy: for data of runs that are missing or have changed.
        trust: see `fer_lightning.config.dataset.settings_of`.

    Raises:
        UserError: there is no such split, the models differ in classes, or the data have classes that they do not know.
    """
    runs = [one.path for one in loaded if one.description is None]
    described = [(one.path, one.description) for one in loaded if one.description is not None]
    files = [description for _, description in described]
    parts = protocol = None
    if data is None:
        if files:
            raise UserError("a model file has no data of its own: name some with --data")
        found = of_runs(runs, remedy=remedy, cleaned=split == "train", trust=trust)
        faces, parts, protocol = found.faces, found.parts, found.protocol["name"]
    else:
        own: Mapping[str, Any] = {"cache_dir": None, "merge": files[0].merge if files else None}
        if runs:
            own = settings_of(runs[0], trust=trust)["data"]
            same = _own_data(runs, files, data, cleaned=split == "train", trust=trust)
        elif None in (of_files := [_made_with(sources.load(data), description) for description in files]):
            same = None
        else:
            check_same(described, "score them apart")
            same = of_files[0]
        if same is not None:
            faces, parts, protocol = same.faces, same.parts, cast(ProtocolName, same.protocol["name"])
        else:
            faces = sources.load(data, cache_dir=cache_root(own)).as_known_by(loaded[0].classes, own.get("merge"))
        if parts is None and split == "test" and len(public := faces.rows("public")):
            print(
                f"{faces.source} is not the data of {loaded[0].path}: its public and private test images are scored, "
                f"of which the first {len(public):,} may have been used in training; --split private leaves them out"
            )
    own_split = parts is not None and split in ("train", "val", "test")
    return Split(faces, getattr(parts, split) if own_split else rows_of(faces, split), parts, protocol)


def _own_data(
    runs: Sequence[Path], files: Sequence[Description], data: str | os.PathLike[str], *, cleaned: bool, trust: bool
) -> Labelled | None:
    """The data, if they are those of all runs and files."""
    takes = settings_of(runs[0], trust=trust)["data"]["source"].get("takes", [])
    if "path" not in takes:
        return None
    try:
        found = of_runs(runs, remedy="", data=data, cleaned=cleaned, trust=trust)
    except UserError:  # other images, or too few for the protocol
        return None
    same = all(file.data.get(part) == found.digests[part] for file in files for part in ("val", "test"))
    return found if same else None


def check_same(described: Sequence[tuple[Path, Description]], remedy: str) -> None:
    """Raises UserError if model files have other validation or test images than the first one: it may have been trained
    on those of another."""
    (first, its), *others = described
    for path, description in others:
        if any(description.data.get(part) != its.data.get(part) for part in ("val", "test")):
            raise UserError(f"{path}: it was validated or tested on other images than {first}; {remedy}")


def rows_of(faces: FaceTable, split: str) -> Rows:
    """The rows of a split of a source; raises UserError as `split_of` does."""
    if split == "all":
        return np.arange(len(faces))
    if split not in SPLITS:
        raise UserError(f"--split {split}: use all, {', '.join(SPLITS)}")
    rows = faces.rows("public", "private", "test") if split == "test" else faces.rows(split)
    if split == "test" and not len(rows):
        return np.arange(len(faces))
    if not len(rows):
        raise UserError(f"--split {split}: {faces.source} has no such images")
    return rows


def _made_with(faces: FaceTable, description: Description) -> Labelled | None:
    """The data, if they are those of a model file; classes that it does not know are merged as in its training, or left
    out."""
    merge = {old: new for old, new in description.merge.items() if old in faces.classes}
    try:
        faces = faces.merged(merge) if merge else faces
        faces = faces if faces.classes == tuple(description.classes) else faces.only(description.classes)
    except UserError:  # they lack one of its classes
        return None
    parts = _own_partition(faces, description)
    if parts is None:
        return None
    digests = parts.digests(faces)
    return Labelled(faces, parts, description.protocol, digests, twins_of(description), description.merge)


def _own_partition(faces: FaceTable, description: Description) -> Partition | None:
    """The partition of a model file; None if these are not the images that it was validated and tested on."""
    protocol: dict[str, Any] = dict(description.protocol)
    if not protocol:
        return None
    faces = with_duplicate_groups(faces, {"twins": twins_of(description), "cache_dir": None})
    try:
        parts = partition(faces, **protocol)
    except (UserError, TypeError):  # other data may have no training images; a stranger's file may hold anything
        return None
    digests = parts.digests(faces)
    return parts if all(digests[name] == description.data.get(name) for name in ("val", "test")) else None


def twins_of(description: Description) -> str:
    """ "exact" or "near": what counted as the same image when a model file was made."""
    return description.data.get("twins", "exact")
