"""Scoring the best checkpoint of a job on any number of ranks, and writing its results."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray

from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.data.loader import FaceLoader
from fer_lightning.data.table import FaceTable
from fer_lightning.report import tables, tracking
from fer_lightning.report.files import write_atomically
from fer_lightning.report.write import write_report
from fer_lightning.runs import results
from fer_lightning.runs.checkpoints import read_checkpoint
from fer_lightning.runs.folder import CONFIG, METRICS, PIXELS
from fer_lightning.training.callbacks import History
from fer_lightning.training.module import FERClassifier

log = logging.getLogger(__name__)


def score(
    trainer: L.Trainer, classifier: FERClassifier, loader: FaceLoader, faces: FaceTable, clean: NDArray[np.bool_]
) -> results.Scored:
    """Pass every image of a loader through the network once, over all ranks.

    Args:
        clean: bool (len(faces),), see `Partition.clean`.
    """
    trainer.test(classifier, dataloaders=loader, verbose=False)
    rows, logits = classifier.predictions.compute()
    return results.Scored.from_logits(faces, rows, logits, clean)


def write(
    trainer: L.Trainer,
    classifier: FERClassifier,
    data: FERDataModule,
    run_dir: Path,
    history: History,
    *,
    best: Path | None,
    monitor: Mapping[str, Any],
    twins: str,
    about: Mapping[str, str],
    loggers: Sequence[Any],
) -> results.Metrics:
    """Score the best checkpoint on the validation and test images, and write report/ and, last of all, metrics.json.

    All ranks score; rank 0 writes.

    Args:
        trainer: has trained.
        classifier: its module.
        data: its data module.
        run_dir: the run folder.
        history: of the training.
        best: the checkpoint to score; None for the last weights.
        monitor: `metric` and `mode` that the checkpoint was chosen by.
        twins: what counts as a duplicate, see `data.twins`.
        about: a description of the run, for the report.
        loggers: of the run.

    Returns:
        The content of metrics.json.
    """
    faces, parts, classes = data.faces, data.parts, data.faces.classes
    best_epoch = trainer.current_epoch - 1
    if best is None:
        log.warning("no checkpoint was chosen by its validation score: the last weights are scored, not the best ones")
    else:
        state = read_checkpoint(best)
        classifier.load_state_dict(state["state_dict"])
        best_epoch = state["epoch"]
    val, test = (
        score(trainer, classifier, data.evaluation_loader(rows), faces, parts.clean) for rows in (parts.val, parts.test)
    )
    metrics = results.scores("val", val.logits, faces.labels[val.rows], classes)
    metrics |= results.test_scores(test, classes)
    metrics |= {
        "train/seconds": round(history.fit_seconds, 1),
        "train/images_per_second": round(history.images_per_second, 1),
        "train/epochs": trainer.current_epoch,
        "train/best_epoch": best_epoch,
        "data/source": faces.source,
        "data/twins": twins,
        PIXELS: hashlib.blake2b(faces.digests[test.rows].tobytes(), digest_size=16).hexdigest(),
    }
    if data.cleaned:
        metrics["data/cleaned"] = data.cleaned
    if not trainer.is_global_zero:
        return metrics
    history.write()
    counts, images = class_counts(data), np.array(faces.images[test.rows])
    index = write_report(
        run_dir,
        predictions=test.predictions,
        classes=classes,
        counts_before=counts["before"],
        counts_after=counts["after"],
        metrics=metrics,
        history=pd.DataFrame(history.rows),
        images=images,
        config_yaml=(run_dir / CONFIG).read_text(),
        about=about,
        monitor=monitor["metric"],
        best_epoch=None if best is None else best_epoch,
    )
    tracking.log_results(
        loggers,
        step=trainer.global_step,
        metrics=metrics,
        predictions={"val": val.predictions, "test": test.predictions},
        classes=classes,
        images=images,
        checkpoint=best,
    )
    # Its presence means that the run is finished.
    write_atomically(run_dir / METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
    tables.print_report(test.predictions, classes, f"{faces.source}, {about['protocol']}: test images, per class")
    print(f"report   {index}")
    return metrics


def class_counts(data: FERDataModule) -> dict[str, dict[str, int]]:
    """Training images per class "before" and "after" resampling."""
    classes = data.faces.classes
    return {
        "before": dict(zip(classes, data.faces.counts(data.parts.train, training=True).tolist(), strict=True)),
        "after": dict(zip(classes, data.class_counts.tolist(), strict=True)),
    }


def best_checkpoint(trainer: L.Trainer) -> Path | None:
    """The best checkpoint of a trainer that has trained, if it keeps any."""
    paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return Path(paths[0]) if paths and paths[0] else None
