"""Finished runs grouped into settings, which are named by what they differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fer_lightning.config.saved import read_settings
from fer_lightning.errors import UserError, flat, quoted
from fer_lightning.report.tables import classes_of, confusion_of, labels_of, probabilities_of
from fer_lightning.runs.folder import CONFIG, PIXELS, finished

IGNORED = ("seed", "logger", "data.cache_dir", "trainer.progress_bar")
"""Keys that do not belong to a setting; `seed` distinguishes the runs of one."""

FOLD = "protocol.fold"
"""Key that distinguishes the runs of one setting as well, if there are folds."""

PATHS = ("dirpath", "save_dir")
"""Last parts of keys that are paths of a run's output."""

SOURCES = ("data.path", "data.votes", "data.relabel", "distill.teachers", "distill.digests", "init_from")
"""Keys of input files and trained networks, which may have another path in another run of the same setting: they
distinguish settings only if runs of the same seed differ in nothing else."""

CONTENTS = {"data.relabel_digest": "data.relabel", "distill.digests": "distill.teachers"}
"""Keys of file digests, and of these files, which name settings instead if they distinguish the same runs."""

FEW = 3
"""Most keys by which every setting is named. If there are more, as where one part at a time is changed, settings are
named by what most others do not share; the one that shares everything is "common"."""

PREDICTIONS = "report/predictions.csv"


@dataclass(frozen=True)
class FinishedRun:
    """A run and its predictions.

    Attributes:
        folder: the run folder.
        keys: the resolved config: dotted key to value, as text.
        seed: of the run.
        fold: of `protocol=kfold`; 0 for other protocols.
        predictions: from predictions.csv; labelled test images only.
        classes: class names in label order.
        pixels: digest of the test images.
    """

    folder: Path
    keys: Mapping[str, str]
    seed: int
    fold: int
    predictions: pd.DataFrame
    classes: tuple[str, ...]
    pixels: str

    @property
    def part(self) -> tuple[int, int]:
        """Seed and fold."""
        return self.seed, self.fold

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,)."""
        return labels_of(self.predictions, self.classes)

    @cached_property
    def guesses(self) -> NDArray[np.int64]:
        """(N,)."""
        return labels_of(self.predictions, self.classes, "prediction")

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, C)."""
        return probabilities_of(self.predictions, self.classes)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C)."""
        return confusion_of(self.predictions, self.classes)


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only, or in their fold of `protocol=kfold`, which counts as a seed does.

    Attributes:
        name: what distinguishes it from the others.
        runs: sorted by seed and fold.
        beside: keys that differ between or within settings and are not in the names.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    beside: tuple[str, ...] = ()


def collect(paths: Sequence[Path], *, clean: bool = False) -> tuple[list[Setting], list[Path]]:
    """Read the finished runs in some folders and group them into settings.

    Args:
        paths: run folders, sweep folders, or folders of such.
        clean: use only test images without a duplicate in the training data.

    Returns:
        Settings, in the order of their runs, and the folders of unfinished runs.

    Raises:
        UserError: no finished run, two runs of one setting and seed, or runs that were scored on different images.
    """
    runs, unfinished = [], []
    for folder in _folders(paths):
        if metrics := finished(folder):
            runs.append(_read(folder, str(metrics.get(PIXELS)), clean))
        else:
            unfinished.append(folder)
    if not runs:
        raise UserError(f"{', '.join(map(str, paths))}: contains no finished run")
    _check_same_images(runs, clean)
    return _settings(runs), unfinished


def _folders(paths: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder")
        own = (path / CONFIG).is_file()
        found = [path] if own else sorted((f.parent for f in path.rglob(CONFIG)), key=_order)
        # Within a run folder, Hydra and W&B keep config files of their own.
        found = [folder for folder in found if not set(folder.parents) & set(found) and folder.name != ".hydra"]
        if not found:
            raise UserError(
                f"{path}: contains no run; name a folder like outputs/<date>/<time> or multirun/<date>/<time>"
            )
        for folder in found:
            if (absolute := folder.resolve()) not in seen:
                seen.add(absolute)
                yield folder


def _order(folder: Path) -> list[tuple[int, str]]:
    """Sort key that puts job 10 after job 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in folder.parts]


def _read(folder: Path, pixels: str, clean: bool) -> FinishedRun:
    settings = read_settings(folder / CONFIG)  # where a path in the run folder is the same for all runs
    path = folder / PREDICTIONS
    try:
        table = _predictions(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not the predictions of a run ({flat(error)}); restore the file") from error
    used = (table["label"] != "") & (table["clean"] if clean else True)
    if not used.any():
        raise UserError(f"{path}: contains no {'clean ' if clean else ''}labelled test image")
    table = table[used].reset_index(drop=True)
    keys, fold = dict(_flat(settings)), 0
    if keys.get("protocol.name") == "kfold":
        fold = int(keys.pop(FOLD))
    return FinishedRun(folder, keys, int(settings["seed"]), fold, table, classes_of(table), pixels)


def _predictions(path: Path) -> pd.DataFrame:
    """The content of predictions.csv.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    # A class may be called "nan", and an id may look like a number.
    table = pd.read_csv(path, dtype={"id": str, "label": str, "prediction": str}, keep_default_na=False)
    if missing := [name for name in ("id", "label", "prediction", "clean") if name not in table]:
        raise ValueError(f"no column {', '.join(missing)}")
    classes = classes_of(table)
    for column, known in (("label", {*classes, ""}), ("prediction", {*classes})):
        if unknown := sorted({*table[column]} - known):
            raise ValueError(f"{column} {quoted(unknown[0])} is not one of its classes")
    if table["clean"].dtype != bool:
        raise ValueError("a value of clean is not True or False")
    if not np.isfinite(probabilities_of(table, classes)).all():
        raise ValueError("a probability is not a finite number")
    return table


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Values as text: limit_train_batches=1 is one batch, and 1.0 is all of them. Lists are as in an override."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _check_same_images(runs: Sequence[FinishedRun], clean: bool) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.classes != first.classes:
            raise UserError(
                f"{run.folder} has the classes {', '.join(run.classes)}, {first.folder} {', '.join(first.classes)}: "
                "compare runs with the same classes"
            )
        twins = [run.keys.get("data.twins") for run in (first, run)]
        if clean and twins[0] != twins[1]:
            raise UserError(
                f"{first.folder} has data.twins={twins[0]}, {run.folder} data.twins={twins[1]}: "
                "compare them without --clean, or compare runs with the same data.twins"
            )
        a, b = first.predictions[["id", "label"]], run.predictions[["id", "label"]]
        if run.pixels != first.pixels or not a.equals(b):
            why = "different pixels" if a.equals(b) else "different images or labels"
            if len(a) != len(b):
                why = f"{len(a):,} and {len(b):,} images"
            raise UserError(
                f"{first.folder} and {run.folder} were scored on different test images ({why}): compare runs "
                "with the same data.path and protocol"
            )


def _settings(runs: Sequence[FinishedRun]) -> list[Setting]:
    table = pd.DataFrame([run.keys for run in runs])
    differing = _differing(table)
    table = table.fillna("None")  # a key that a run lacks is as good as null
    table[FOLD] = [run.fold for run in runs]
    used = [key for key in differing if key not in SOURCES]
    if table.duplicated([*used, "seed", FOLD]).any():
        used = differing
    named: list[str] = []  # the first keys that together distinguish all settings; the others follow from them
    distinct = 1
    for key in used:
        if (n := len(table[[*named, key]].drop_duplicates())) > distinct:
            named, distinct = [*named, key], n
    shown = [_readable(table, key) for key in named]
    beside = tuple(sorted(key for key in differing if not any(_implied(key, name) for name in {*named, *shown})))
    common: dict[str, str] = {}
    if len(shown) > FEW:
        of_each = table.drop_duplicates(named)
        shares = {key: of_each[key].value_counts(normalize=True) for key in shown}
        common = {key: str(share.idxmax()) for key, share in shares.items() if share.max() > 0.5}
    groups: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run, row in zip(runs, table[named].to_numpy().tolist(), strict=True):
        groups.setdefault(tuple(row), []).append(run)
    settings = []
    for members in groups.values():
        members.sort(key=lambda run: run.part)
        for one, other in pairwise(members):
            if one.part == other.part:
                raise UserError(
                    f"{one.folder} and {other.folder} have the same setting and seed: name only one of them"
                )
        words = []
        for key in shown:
            text = members[0].keys.get(key, "None")
            if text != common.get(key):
                words.append(text if key.endswith(".name") else f"{key}={text}")
        settings.append(Setting(", ".join(words) or ("common" if shown else "all runs"), tuple(members), beside))
    return settings


def _differing(table: pd.DataFrame) -> list[str]:
    """Keys that differ between runs other than by the seed; names of options first, then the least nested.

    Args:
        table: a row for each run, a column for each key.
    """
    found = []
    for key in map(str, table):
        last = key.rpartition(".")[2]
        if key in IGNORED or key.partition(".")[0] in IGNORED or last in PATHS:
            continue
        follows_seed = last == "seed" and bool((table[key].fillna(table["seed"]) == table["seed"]).all())
        if table[key].fillna("None").nunique() > 1 and not follows_seed:
            found.append(key)
    return sorted(found, key=lambda key: (not key.endswith(".name"), key.count("."), key))


def _readable(table: pd.DataFrame, key: str) -> str:
    """The key itself, or that of the files which it has the digest of, if both distinguish the same runs."""
    other = CONTENTS.get(key, key)
    both = table[[key, other]].drop_duplicates() if other in table else table[[key]]
    return other if len(both) == table[key].nunique() == table[other].nunique() else key


def _implied(key: str, name: str) -> bool:
    """Whether `name`, a key that settings are named by, accounts for `key`: an option of a config group accounts for
    all keys of the group."""
    group, _, last = name.rpartition(".")
    return key == name or (last in ("name", "_target_") and key.startswith(f"{group}."))
