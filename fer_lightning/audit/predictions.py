"""What finished runs predict for images they were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.config.dataset import load_parts_of, settings_of
from fer_lightning.data.table import FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference.load import load_model
from fer_lightning.runs.folder import finished


def out_of_sample(
    faces: FaceTable, runs: Sequence[Path], group: NDArray[np.int64], *, trust: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean probabilities of each image over the runs whose training set has neither it nor a duplicate of it.

    Args:
        faces: the images.
        runs: folders of finished runs of these images and classes.
        group: int64 (N,), duplicates share a number.
        trust: allow targets of the runs' configs that are not on the allow-list, and the download of their data.

    Returns:
        float64 (N, C), all 0 for an image without such runs, and the number of runs for each image, int64 (N,).

    Raises:
        UserError: a run is not finished, or was trained on other images or classes, on data that have changed since, or
            from weights or by teachers that may know any of the images.
    """
    row_of = {name: row for row, name in enumerate(faces.ids.tolist())}
    total = np.zeros((len(faces), len(faces.classes)))
    number = np.zeros(len(faces), dtype=np.int64)
    for run_dir in dict.fromkeys(path.resolve() for path in runs):
        settings = settings_of(run_dir, trust=trust)
        if finished(run_dir) is None:
            raise UserError(f"--run {run_dir}: not finished; resume it with `python train.py resume={run_dir}`")
        _check_start(run_dir, settings)
        predictor = load_model(run_dir, trust=trust)
        if predictor.classes != faces.classes:
            raise UserError(
                f"--run {run_dir}: its classes are {', '.join(predictor.classes)}, those of {faces.source} are "
                f"{', '.join(faces.classes)}: name a run with the same classes"
            )
        remedy = "or name a run of the data as they are now"
        own, parts, *_ = load_parts_of(run_dir, settings, trust=trust, remedy=remedy)
        here = np.array([row_of.get(name, -1) for name in own.ids.tolist()], dtype=np.int64)
        if (here < 0).any() or (own.digests != faces.digests[here]).any():
            raise UserError(f"--run {run_dir}: its data, {own.source}, has images that {faces.source} does not have")
        alike = [
            np.isin(of, of[parts.train]) for of in (group[here], own.duplicate_groups)
        ]  # duplicates by either grouping
        rows = np.flatnonzero(~np.logical_or(*alike))
        print(f"{run_dir}: predicting {len(rows):,} images that it was not trained on", flush=True)
        total[here[rows]] += predictor.logits(own.images[rows]).double().softmax(1).numpy()
        number[here[rows]] += 1
    return total / np.maximum(number, 1)[:, None], number


def _check_start(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a run that others had trained before, on nobody knows which images."""
    teachers = settings["distill"]["teachers"] and settings["distill"]["other_data"]
    for key, used in (("init_from", settings["init_from"]), ("distill.other_data", teachers)):
        if used:
            raise UserError(
                f"--run {run_dir}: it was trained with {key}={used}, whose network may know these images; name a run "
                "without"
            )
