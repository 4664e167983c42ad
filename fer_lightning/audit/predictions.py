"""What finished runs predict for images they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_lightning.config.dataset import load_parts_of
from fer_lightning.data.datamodule import evaluation_loader
from fer_lightning.data.table import FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference.evaluate import load_classifier, scoring_settings, scoring_trainer
from fer_lightning.report.tables import probabilities_of
from fer_lightning.runs.folder import finished
from fer_lightning.training import results
from fer_lightning.training.job import quiet


def out_of_sample(
    faces: FaceTable, runs: Sequence[Path], group: NDArray[np.int64], *, accelerator: str = "auto", trust: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean probabilities over the runs that neither an image nor a twin of it was trained on by.

    Args:
        faces: the images.
        runs: folders of finished runs of these images and classes.
        group: int64 (N,), two images share one where they are twins.
        accelerator: "auto", "cpu" or "gpu".
        trust: accept targets of other code in the runs' configs.

    Returns:
        float64 (N, C), 0 throughout where there are none, and the number of runs for each image, int64 (N,).

    Raises:
        UserError: a run is not finished, or was trained on other images or classes, or on data that have changed since.
    """
    quiet()
    row_of = {name: row for row, name in enumerate(faces.ids.tolist())}
    total = np.zeros((len(faces), len(faces.classes)))
    number = np.zeros(len(faces), dtype=np.int64)
    for run_dir in dict.fromkeys(path.resolve() for path in runs):
        settings = scoring_settings(run_dir, accelerator, trust=trust)
        if finished(run_dir) is None:
            raise UserError(f"--run {run_dir}: not finished; go on with it by `python train.py resume={run_dir}`")
        classifier = load_classifier(run_dir, trust=trust)
        if tuple(classifier.classes) != faces.classes:
            raise UserError(
                f"--run {run_dir}: it knows the classes {', '.join(classifier.classes)}, and {faces.source} has "
                f"{', '.join(faces.classes)}: name a run with the same"
            )
        way_out = "or name a run of the data as they are"
        own, parts, *_ = load_parts_of(run_dir, settings, way_out=way_out)
        here = np.array([row_of.get(name, -1) for name in own.ids.tolist()], dtype=np.int64)
        if (here < 0).any() or (own.digests != faces.digests[here]).any():
            raise UserError(f"--run {run_dir}: its data, {own.source}, has images that {faces.source} has not")
        alike = [np.isin(of, of[parts.train]) for of in (group[here], own.twins)]  # what either takes for twins
        rows = np.flatnonzero(~np.logical_or(*alike))
        print(f"{run_dir}: predicting {len(rows):,} images that it was not trained on", flush=True)
        trainer = scoring_trainer(settings, run_dir)
        loader = evaluation_loader(own, rows, settings["data"]["eval_batch_size"], trainer)
        scored = results.predict(trainer, classifier, loader, own, parts.clean)
        total[here[scored.rows]] += probabilities_of(scored.predictions, faces.classes)
        number[here[scored.rows]] += 1
    return total / np.maximum(number, 1)[:, None], number
