"""Finished runs, sorted into settings: what they differ in, and the seeds of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from fer_lightning.errors import UserError
from fer_lightning.report.tables import PROBABILITY, labels_of, probabilities_of
from fer_lightning.runfolder import CONFIG, METRICS, load_settings

IGNORED = ("seed", "resume", "allow_changes", "logger", "data.cache_dir", "trainer.progress_bar")
"""Keys that change nothing about what is compared; `seed` tells the runs of one setting apart."""

PLACES = ("dirpath", "save_dir")
"""Last parts of keys that say where a run keeps its files."""

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
    """

    folder: Path
    keys: Mapping[str, Any]
    seed: int
    predictions: pd.DataFrame
    classes: tuple[str, ...]

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
    """

    name: str
    keys: Mapping[str, Any]
    runs: tuple[FinishedRun, ...]


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
    _check_same_images(runs)
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
        table = pd.read_csv(path, dtype={"id": str, "label": str, "prediction": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    kept = (table["label"] != "") & (table["clean"] if clean else True)
    if not kept.any():
        raise UserError(f"{path}: no {'clean ' if clean else ''}labelled test image to compare by")
    classes = tuple(name.removeprefix(PROBABILITY) for name in table.columns if name.startswith(PROBABILITY))
    return FinishedRun(
        folder, dict(_flat(settings)), int(settings["seed"]), table[kept].reset_index(drop=True), classes
    )


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            # As one would write it in an override.
            yield f"{prefix}{key}", f"[{','.join(map(str, value))}]" if isinstance(value, list) else value


def _check_same_images(runs: Sequence[FinishedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.classes != first.classes:
            raise UserError(
                f"{run.folder} knows the classes {', '.join(run.classes)}, {first.folder} {', '.join(first.classes)}: "
                "they cannot be compared"
            )
        a, b = first.predictions[["id", "label"]], run.predictions[["id", "label"]]
        if not a.equals(b):
            why = f"{len(a):,} and {len(b):,} images" if len(a) != len(b) else "other images or labels"
            raise UserError(
                f"{first.folder} and {run.folder} were scored on different test images ({why}): compare runs of one "
                "data.path and protocol"
            )


def _settings(runs: Sequence[FinishedRun]) -> list[Setting]:
    differing = _differing(runs)
    groups: dict[tuple[Any, ...], list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(run.keys.get(key) for key in differing), []).append(run)
    telling = _telling(differing, list(groups))
    settings = []
    for values, members in groups.items():
        members.sort(key=lambda run: run.seed)
        for one, other in pairwise(members):
            if one.seed == other.seed:
                raise UserError(
                    f"{one.folder} and {other.folder} are the same setting with the same seed: name one of them"
                )
        keys = {key: values[differing.index(key)] for key in telling}
        settings.append(Setting(_name(keys), keys, tuple(members)))
    return settings


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
