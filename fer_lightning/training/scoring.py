"""Scoring the best checkpoint of a job on any number of ranks, and writing its results."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import ModelCheckpoint

from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.data.protocols import Rows
from fer_lightning.metrics.calibration import entries
from fer_lightning.report import tables, tracking
from fer_lightning.report.files import write_atomically
from fer_lightning.report.write import write_report
from fer_lightning.runs import results
from fer_lightning.runs.checkpoints import read_checkpoint
from fer_lightning.runs.folder import CHECKPOINTS, CONFIG, LAST, METRICS, PIXELS
from fer_lightning.training.callbacks import History
from fer_lightning.training.description import describe
from fer_lightning.training.module import FERClassifier

log = logging.getLogger(__name__)


def write(
    settings: Mapping[str, Any], run_dir: Path, data: FERDataModule, trainer: L.Trainer, history: History
) -> results.Metrics:
    """Score the best checkpoint on the validation and test images, and write report/ and, last of all, metrics.json.

    All ranks score; rank 0 writes.

    Args:
        settings: the resolved config.
        run_dir: the run folder.
        data: of the run.
        trainer: has trained.
        history: of the training.

    Returns:
        The content of metrics.json.
    """
    classifier = trainer.lightning_module
    assert isinstance(classifier, FERClassifier)
    faces, parts, classes = data.faces, data.parts, data.faces.classes
    best_epoch = int(history.rows[-1]["epoch"])  # the last one; Lightning forgets an epoch that it has not completed
    epochs = best_epoch + 1
    bests = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    best = Path(bests[0]) if bests and bests[0] else None
    last = run_dir / CHECKPOINTS / LAST
    if best is None:
        log.warning("no checkpoint was chosen by its validation score: the last weights are scored, not the best ones")
        if last.is_file():  # an average of the weights, also where a resumed run had nothing left to train
            classifier.load_state_dict(read_checkpoint(last)["state_dict"])
    else:
        state = read_checkpoint(best)
        classifier.load_state_dict(state["state_dict"])
        classifier.unaugmented = None  # its statistics were estimated when it was validated
        best_epoch = state["epoch"]

    limit = settings["trainer"]["limit_test_batches"]

    def score(rows: Rows) -> results.Scored:
        """Pass the images through the network once, over all ranks."""
        classifier.predictions.reset()  # Lightning leaves out what has no images
        trainer.test(classifier, dataloaders=data.evaluation_loader(rows, limit), verbose=False)
        scored, _, logits = classifier.predictions.compute()
        return results.Scored.from_logits(faces, scored.numpy(), logits, parts.clean)

    val, test = score(parts.val), score(parts.test)
    calibration = results.fit_calibration(val.logits, faces.labels[val.rows])
    metrics = results.scores("val", val.logits, faces.labels[val.rows], classes)
    metrics |= results.test_scores(test, classes, calibration)
    metrics |= entries(calibration)
    metrics |= {
        "train/seconds": round(history.fit_seconds, 1),
        "train/images_per_second": round(history.images_per_second, 1),
        "train/epochs": epochs,
        "train/best_epoch": best_epoch,
        "data/source": faces.source,
        "data/twins": settings["data"]["twins"],
        "commit": ", ".join(history.commits),
        PIXELS: hashlib.blake2b(faces.digests[test.rows].tobytes(), digest_size=16).hexdigest(),
    }
    if data.cleaned:
        metrics["data/cleaned"] = data.cleaned
    if not trainer.is_global_zero:
        return metrics
    history.write()
    counts, images = class_counts(data), np.array(faces.images[test.rows])
    about = describe(settings, run_dir, data, classifier, trainer.strategy.root_device)
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
        monitor=settings["monitor"]["metric"],
        best_epoch=None if best is None else best_epoch,
    )
    tracking.log_results(
        trainer.loggers,
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
