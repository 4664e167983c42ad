"""From a config to its data: the table, its partition, what is cleaned, the data module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fer_lightning.data import ferplus
from fer_lightning.data.protocols import Partition, partition
from fer_lightning.data.quality.cleaning import drop, relabel
from fer_lightning.data.quality.duplicates import near_twins
from fer_lightning.data.readers.cache import default_root
from fer_lightning.data.synthetic import synthetic
from fer_lightning.data.table import FaceTable
from fer_lightning.runs import folder

Settings = Mapping[str, Any]
"""A resolved config as plain containers."""


def load_faces(settings: Settings) -> FaceTable:
    """The table that the `data` group names.

    Raises:
        UserError: the source or the votes are missing or faulty, or have no such classes.
    """
    data = settings["data"]
    if data["name"] == "synthetic":
        faces = synthetic(**data["synthetic"])
    else:
        from fer_lightning.data.readers import sources

        faces = sources.load(data["path"] or "", cache_dir=cache_root(data))
    if data.get("votes"):
        faces = ferplus.attach(faces, data["votes"])
    if data["name"] == "ferplus":
        faces = ferplus.relabelled(faces, data["target"], data["merge"])
    elif data.get("merge"):
        faces = faces.merged(data["merge"])
    faces = faces.only(data["classes"]) if data["classes"] else faces
    return with_twins(faces, data)


def with_twins(faces: FaceTable, data: Mapping[str, Any]) -> FaceTable:
    """The table with the twins that the `data` group asks for."""
    near = data["twins"] == "near"
    return replace(faces, near=near_twins(faces, cache_root(data))[0] if near else None)


def cache_root(data: Mapping[str, Any]) -> Path:
    """Where the `data` group keeps what it has read."""
    return Path(data["cache_dir"]) if data["cache_dir"] else default_root()


class Loaded(NamedTuple):
    """A table and its partition.

    Attributes:
        cleaned: what was done to the training images, in words.
        digests: of the images and labels of each part before anything was done, and of those trained on after that.
    """

    faces: FaceTable
    parts: Partition
    cleaned: str
    digests: dict[str, str]


def load_parts(settings: Settings, *, cleaned: bool = True) -> Loaded:
    """The table of a config and its partition, training images cleaned as `data.relabel` and `data.drop` say, unless
    only others are of interest.

    Raises:
        UserError: the source, the protocol or what cleans it cannot be.
    """
    faces, data = load_faces(settings), settings["data"]
    parts = partition(faces, **settings["protocol"])
    digests = parts.digests(faces)
    done, given = [], None
    if cleaned and data["relabel"]:
        faces, parts, words, given = relabel(faces, parts, data["relabel"], data["merge"] or {}, data["relabel_digest"])
        done.append(words)
    if cleaned and data["drop"]:
        parts, words = drop(faces, parts, data["drop"], cache_root(data), given)
        done.append(words)
    if done:  # FER+ votes that decide who is left out may change as well
        digests["cleaned"] = parts.digests(faces)["train"]
    return Loaded(faces, parts, "; ".join(done), digests)


def load_parts_of(run_dir: Path, settings: Settings, *, cleaned: bool = True, way_out: str) -> Loaded:
    """`load_parts` for a run that has been trained.

    Raises:
        UserError: as there; or the data are not those that the run was started with, and `way_out`.
    """
    loaded = load_parts(settings, cleaned=cleaned)
    folder.compare_partition(run_dir, loaded.faces.source, loaded.digests, way_out)
    return loaded
