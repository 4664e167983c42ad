"""Finished runs, sorted into settings: what they differ in, and the seeds of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from fer_lightning.errors import UserError
from fer_lightning.report.tables import PROBABILITY, labels_of, probabilities_of
from fer_lightning.runs.folder import CONFIG, METRICS, PIXELS, load_settings

IGNORED = ("seed", "resume", "allow_changes", "logger", "data.cache_dir", "trainer.progress_bar")
"""Keys that change nothing about what is compared; `seed` tells the runs of one setting apart."""

PLACES = ("dirpath", "save_dir")
"""Last parts of keys that say where a run keeps its files."""

SOURCES = ("data.path", "data.votes", "data.relabel")
"""Keys of files, which may lie elsewhere for another run of the same setting: they count where nothing else tells runs
of the same seed apart."""

PREDICTIONS = "report/predictions.csv"


@dataclass(frozen=True)
class FinishedRun:
    """A run and what it predicted.

    Attributes:
        folder: the run folder.
        keys: the resolved config, flat: dotted key to value.
        seed: of the run.
        predictions: from predictions.csv; labelled test images only.
        classes: class names in label order.
        pixels: digest of the test images; None in runs of older versions.
    """

    folder: Path
    keys: Mapping[str, Any]
    seed: int
    predictions: pd.DataFrame
    classes: tuple[str, ...]
    pixels: str | None

    @property
    def labels(self) -> NDArray[Any]:
        """int64 (N,)."""
        return labels_of(self.predictions, self.classes)

    @property
    def guesses(self) -> NDArray[Any]:
        """int64 (N,)."""
        return labels_of(self.predictions, self.classes, "prediction")

    @property
    def probabilities(self) -> NDArray[Any]:
        """float64 (N, C)."""
        return probabilities_of(self.predictions, self.classes)


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only.

    Attributes:
        name: what sets it apart from the others, for people.
        keys: the same, for programs: dotted key to value.
        runs: by seed.
        beside: keys that differ between or within settings and that the names do not tell of.
    """

    name: str
    keys: Mapping[str, Any]
    runs: tuple[FinishedRun, ...]
    beside: tuple[str, ...] = ()


def collect(paths: Sequence[Path], *, clean: bool = False) -> tuple[list[Setting], list[Path]]:
    """The settings among the runs and sweeps of some folders.

    Args:
        paths: run folders, sweep folders, or folders of such.
        clean: keep only test images without a twin in training.

    Returns:
        Settings, in the order in which their runs were found, and the folders of runs that have not finished.

    Raises:
        UserError: no finished run, two runs of one setting and seed, or runs that were scored on different images.
    """
    runs, unfinished = [], []
    for folder in _folders(paths):
        if (folder / METRICS).is_file():
            runs.append(_read(folder, clean))
        else:
            unfinished.append(folder)
    if not runs:
        raise UserError(f"{', '.join(map(str, paths))}: no finished run there")
    _check_same_images(runs, clean)
    return _settings(runs), unfinished


def _folders(paths: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder")
        own = (path / CONFIG).is_file()
        found = [path] if own else sorted((f.parent for f in path.rglob(CONFIG)), key=_order)
        # Within a run folder, Hydra and W&B keep config files of their own.
        found = [folder for folder in found if not set(folder.parents) & set(found) and folder.name != ".hydra"]
        if not found:
            raise UserError(f"{path}: no run there; name a folder like outputs/<date>/<time> or multirun/<date>/<time>")
        for folder in found:
            if (absolute := folder.resolve()) not in seen:
                seen.add(absolute)
                yield folder


def _order(folder: Path) -> list[tuple[int, str]]:
    """Job 10 after job 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in folder.parts]


def _read(folder: Path, clean: bool) -> FinishedRun:
    settings = load_settings(folder)
    path = folder / PREDICTIONS
    try:
        # A class may be called "nan", and an id may look like a number.
        pixels = json.loads((folder / METRICS).read_text()).get(PIXELS)
        table = pd.read_csv(path, dtype={"id": str, "label": str, "prediction": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: what it predicted cannot be read ({' '.join(str(error).split())})") from error
    kept = (table["label"] != "") & (table["clean"] if clean else True)
    if not kept.any():
        raise UserError(f"{path}: no {'clean ' if clean else ''}labelled test image to compare by")
    classes = tuple(name.removeprefix(PROBABILITY) for name in table.columns if name.startswith(PROBABILITY))
    table = table[kept].reset_index(drop=True)
    return FinishedRun(folder, dict(_flat(settings)), int(settings["seed"]), table, classes, pixels)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            # As one would write it in an override.
            yield f"{prefix}{key}", f"[{','.join(map(str, value))}]" if isinstance(value, list) else value


def _check_same_images(runs: Sequence[FinishedRun], clean: bool) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.classes != first.classes:
            raise UserError(
                f"{run.folder} knows the classes {', '.join(run.classes)}, {first.folder} {', '.join(first.classes)}: "
                "they cannot be compared"
            )
        twins = [str(r.keys.get("data.twins", "exact")) for r in (first, run)]
        if clean and twins[0] != twins[1]:
            raise UserError(
                f"{first.folder} has data.twins={twins[0]}, {run.folder} {twins[1]}: they mean different images by "
                "clean; compare them without --clean, or runs that agree"
            )
        a, b = first.predictions[["id", "label"]], run.predictions[["id", "label"]]
        other_pixels = None not in (first.pixels, run.pixels) and first.pixels != run.pixels
        if other_pixels or not a.equals(b):
            why = "other pixels" if a.equals(b) else "other images or labels"
            if len(a) != len(b):
                why = f"{len(a):,} and {len(b):,} images"
            raise UserError(
                f"{first.folder} and {run.folder} were scored on different test images ({why}): compare runs of one "
                "data.path and protocol"
            )


def _settings(runs: Sequence[FinishedRun]) -> list[Setting]:
    differing = _differing(runs)
    telling = [key for key in differing if key not in SOURCES]
    if any(len({run.seed for run in group}) < len(group) for group in _grouped(runs, telling).values()):
        telling = differing
    groups = _grouped(runs, telling)
    named = _telling(telling, list(groups))
    beside = tuple(sorted(key for key in differing if not any(_told(key, name) for name in named)))
    settings = []
    for values, members in groups.items():
        members.sort(key=lambda run: run.seed)
        for one, other in pairwise(members):
            if one.seed == other.seed:
                raise UserError(
                    f"{one.folder} and {other.folder} are the same setting with the same seed: name one of them"
                )
        keys = {key: values[telling.index(key)] for key in named}
        settings.append(Setting(_name(keys), keys, tuple(members), beside))
    return settings


def _grouped(runs: Sequence[FinishedRun], keys: Sequence[str]) -> dict[tuple[Any, ...], list[FinishedRun]]:
    groups: dict[tuple[Any, ...], list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(run.keys.get(key) for key in keys), []).append(run)
    return groups


def _told(key: str, name: str) -> bool:
    """Whether a key that differs is accounted for by a key that settings are named by: of an option of a group, all
    that belongs to the option is."""
    group, _, last = name.rpartition(".")
    return key == name or (last in ("name", "_target_") and key.startswith(f"{group}."))


def _differing(runs: Sequence[FinishedRun]) -> list[str]:
    """Keys that are not the same in all runs, and do not just follow the seed; the most telling ones first."""
    names = {name for run in runs for name in run.keys}
    found = []
    for name in names:
        last = name.rpartition(".")[2]
        if name in IGNORED or name.partition(".")[0] in IGNORED or last in PLACES:
            continue
        values = {str(run.keys.get(name)) for run in runs}
        follows_seed = last == "seed" and all(run.keys.get(name, run.seed) == run.seed for run in runs)
        if len(values) > 1 and not follows_seed:
            found.append(name)
    return sorted(found, key=lambda name: (not name.endswith(".name"), name.count("."), name))


def _telling(differing: Sequence[str], groups: Sequence[tuple[Any, ...]]) -> list[str]:
    """As few of the keys as tell all groups apart: others follow from them."""
    kept: list[int] = []
    parts = 1
    for i in range(len(differing)):
        apart = len({tuple(str(values[j]) for j in (*kept, i)) for values in groups})
        if apart > parts:
            kept.append(i)
            parts = apart
    return [differing[i] for i in kept]


def _name(keys: Mapping[str, Any]) -> str:
    words = [str(value) if key.endswith(".name") else f"{key}={value}" for key, value in keys.items()]
    return ", ".join(words) or "all runs"
