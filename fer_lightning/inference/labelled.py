"""The labelled images that a model may be calibrated, checked and scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_lightning.config.dataset import load_parts_of, settings_of
from fer_lightning.data.protocols import Partition, partition
from fer_lightning.data.readers import sources
from fer_lightning.data.table import FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference.description import Description
from fer_lightning.runs.folder import compare_partition

PARTS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Labelled:
    """A table, its partition, and what they are.

    Attributes:
        faces: the table.
        parts: its partition.
        protocol: the config group `protocol`.
        digests: of the images and labels of each part.
    """

    faces: FaceTable
    parts: Partition
    protocol: Mapping[str, Any]
    digests: Mapping[str, str]


def of_runs(run_dirs: Sequence[Path], *, remedy: str, cleaned: bool = False, trust: bool = False) -> Labelled:
    """The data of runs that are to be averaged, which must have validation and test images in common.

    Args:
        run_dirs: of the runs.
        remedy: for data that are missing or have changed.
        cleaned: with the training set cleaned as the first run did.
        trust: see `fer_lightning.config.dataset.settings_of`.

    Raises:
        UserError: the data are missing or have changed, or the runs have other validation or test images.
    """
    first = run_dirs[0]
    settings = settings_of(first, trust=trust)
    loaded = load_parts_of(first, settings, cleaned=cleaned, trust=trust, remedy=remedy)
    for other in run_dirs[1:]:  # otherwise one may have been trained on what another is scored on
        same = {name: loaded.digests[name] for name in PARTS}
        compare_partition(
            other, loaded.faces.source, same, f"or name only runs of the same data and protocol as {first}"
        )
    return Labelled(loaded.faces, loaded.parts, settings["protocol"], loaded.digests)


def of_file(data: str, description: Description, path: Path) -> Labelled:
    """The data that a model file was made with, read again.

    Raises:
        UserError: they cannot be read, or are not the same.
    """
    faces = sources.load(data).as_known_by(tuple(description.classes), None)
    protocol: dict[str, Any] = dict(description.protocol)
    parts = partition(faces, **protocol)
    digests = parts.digests(faces)
    for name, title in PARTS.items():
        if digests[name] != description.data.get(name):
            raise UserError(
                f"{data}: its {title} images are not those that {path} was made with; name the same data, or leave "
                "--data out"
            )
    return Labelled(faces, parts, protocol, digests)
