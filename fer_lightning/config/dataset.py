"""From a config to its data: the table, its partition, the cleaned training set, the data module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fer_lightning.config import instantiate
from fer_lightning.config.saved import check_complete
from fer_lightning.data import ferplus
from fer_lightning.data.protocols import Partition, partition
from fer_lightning.data.quality.cleaning import drop, relabel
from fer_lightning.data.quality.duplicates import near_duplicates
from fer_lightning.data.readers.cache import FORMAT, default_root
from fer_lightning.data.readers.remote import is_url
from fer_lightning.data.table import FaceTable
from fer_lightning.errors import UserError, printable
from fer_lightning.runs import folder


def load_faces(settings: Mapping[str, Any]) -> FaceTable:
    """The table that `data.source` returns, with the votes and classes that the `data` group asks for.

    `data.source.takes` names the keys of `data` that the target takes as arguments. Votes and merges that are not among
    them are applied here.

    Raises:
        UserError: the source or the votes are missing or invalid, or there are no such classes.
    """
    data, source = settings["data"], dict(settings["data"]["source"])
    takes = source.pop("takes", [])
    faces: FaceTable | None = instantiate.node("data.source", source, **dict(_argument(data, key) for key in takes))
    if faces is None:
        raise UserError("data.source is empty: choose data=fer2013, ferplus or synthetic, or name a _target_")
    if data.get("votes") and "votes" not in takes:
        faces = ferplus.attach(faces, data["votes"])
    if data.get("merge") and "merge" not in takes:
        faces = faces.merged(data["merge"])
    faces = faces.only(data["classes"]) if data["classes"] else faces
    return with_duplicate_groups(faces, data)


def _argument(data: Mapping[str, Any], key: str) -> tuple[str, Any]:
    """Name and value of the argument for a key such as `path` or `synthetic.n_train`."""
    value: Any = data
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise UserError(f"data.source.takes: there is no data.{key}; correct the name")
        value = value[name]
    return key.rpartition(".")[2], value


def with_duplicate_groups(faces: FaceTable, data: Mapping[str, Any]) -> FaceTable:
    """A copy of the table in which near-duplicates count as the same image if `data.twins` is "near"."""
    near = data["twins"] == "near"
    return replace(faces, near=near_duplicates(faces, cache_root(data))[0] if near else None)


def cache_root(data: Mapping[str, Any]) -> Path:
    """The cache folder of the `data` group."""
    return Path(data["cache_dir"]) if data["cache_dir"] else default_root()


class Loaded(NamedTuple):
    """A table and its partition.

    Attributes:
        cleaned: a description of how the training set was cleaned.
        digests: of the images and labels of each part before cleaning, and of the training set after it.
    """

    faces: FaceTable
    parts: Partition
    cleaned: str
    digests: dict[str, str]


def load_parts(settings: Mapping[str, Any], *, cleaned: bool = True) -> Loaded:
    """The table of a resolved config and its partition.

    If `cleaned`, the training set is cleaned by `data.relabel` and `data.drop`.

    Raises:
        UserError: the source, the protocol or the cleaning is invalid.
    """
    faces, data = load_faces(settings), settings["data"]
    parts = partition(faces, **settings["protocol"])
    digests = parts.digests(faces)
    done, given = [], None
    if cleaned and data["relabel"]:
        faces, parts, summary, given = relabel(
            faces, parts, data["relabel"], data["merge"] or {}, data["relabel_digest"]
        )
        done.append(summary)
    if cleaned and data["drop"]:
        parts, summary = drop(faces, parts, data["drop"], cache_root(data), given)
        done.append(summary)
    if done:  # FER+ votes that decide who is left out may change as well
        digests["cleaned"] = parts.digests(faces)["train"]
    return Loaded(faces, parts, "; ".join(done), digests)


def settings_of(run_dir: Path, *, trust: bool) -> dict[str, Any]:
    """The resolved config of a trained run whose data are read again; the run may come from a stranger.

    Unless `trust` is set, its cache folder is replaced by the user's where it is not a cache already.

    Raises:
        UserError: it is incomplete, or names a target that is not allowed.
    """
    settings, path = folder.load_settings(run_dir), run_dir / folder.CONFIG
    check_complete(settings, path)
    instantiate.check_targets(settings, where=str(path), trust=trust)
    data = settings["data"]
    if data["cache_dir"] and not trust and not Path(data["cache_dir"], f"v{FORMAT}").is_dir():
        data["cache_dir"] = None
    return settings


def load_parts_of(
    run_dir: Path, settings: Mapping[str, Any], *, cleaned: bool = True, trust: bool, remedy: str
) -> Loaded:
    """`load_parts` for a run that has been trained.

    Raises:
        UserError: as there; the data would be downloaded without `trust`; or they have changed since the run was
            started, with the remedy `remedy`.
    """
    url = settings["data"]["path"]
    if url and is_url(url):
        if not trust:
            raise UserError(f"{run_dir}: its data are at {printable(url)}: add --trust to download them, {remedy}")
    elif url and not Path(url).expanduser().exists():
        raise UserError(f"{run_dir}: its data, {printable(url)}, are not there; restore them, {remedy}")
    loaded = load_parts(settings, cleaned=cleaned)
    folder.compare_partition(run_dir, loaded.faces.source, loaded.digests, remedy)
    return loaded
