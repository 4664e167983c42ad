"""From a trained network to the run folder: scores, metrics.json, report."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray

from fer_lightning import __version__
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.data.loader import FaceLoader
from fer_lightning.data.table import SPLITS, UNLABELLED, FaceTable
from fer_lightning.report import tables, tracking
from fer_lightning.report.files import write_atomically
from fer_lightning.report.write import write_report
from fer_lightning.runs.checkpoints import read_checkpoint
from fer_lightning.runs.folder import CONFIG, METRICS, PIXELS
from fer_lightning.training.callbacks import History
from fer_lightning.training.metrics import ClassificationScores, accuracy_interval, confusion
from fer_lightning.training.module import FERClassifier

log = logging.getLogger(__name__)

Metrics = dict[str, float | str]


class Scored(NamedTuple):
    """Images that went through the network once, in table order.

    Attributes:
        predictions: a row an image, see `tables.predictions`.
        logits: float32 (N, C).
        rows: int64 (N,), their rows in the face table.
    """

    predictions: pd.DataFrame
    logits: torch.Tensor
    rows: NDArray[np.int64]


def predict(
    trainer: L.Trainer, classifier: FERClassifier, loader: FaceLoader, faces: FaceTable, clean: NDArray[np.bool_]
) -> Scored:
    """Run every image of a loader through the network once.

    Args:
        clean: bool (len(faces),), see `Partition.clean`.
    """
    trainer.test(classifier, dataloaders=loader, verbose=False)
    rows, logits = classifier.predictions.compute()
    splits = [SPLITS[s] for s in faces.split[rows]]
    probabilities = logits.double().softmax(1).numpy()
    table = tables.predictions(faces.ids[rows], splits, faces.labels[rows], probabilities, clean[rows], faces.classes)
    return Scored(table, logits, rows)


def scores(prefix: str, logits: torch.Tensor, labels: NDArray[np.int64], classes: tuple[str, ...]) -> Metrics:
    """Scores of labelled images with the bootstrap interval of their accuracy; nothing where there are none."""
    n = int((labels != UNLABELLED).sum())
    if not n:
        return {}
    metric = ClassificationScores(classes, local=True)
    metric.update(logits, torch.from_numpy(labels))
    values = metric.compute()
    values["accuracy_low"], values["accuracy_high"] = accuracy_interval(round(values["accuracy"] * n), n)
    return {f"{prefix}/{name}": value for name, value in values.items()}


def test_scores(test: Scored, classes: tuple[str, ...]) -> Metrics:
    """Scores over all images and, as "test/clean/…", over those that have no twin in training."""
    labels, clean = tables.labels_of(test.predictions, classes), test.predictions["clean"].to_numpy(copy=True)
    clean_scores = scores("test/clean", test.logits[torch.from_numpy(clean)], labels[clean], classes)
    return scores("test", test.logits, labels, classes) | clean_scores


def write(
    settings: Mapping[str, Any],
    data: FERDataModule,
    classifier: FERClassifier,
    trainer: L.Trainer,
    run_dir: Path,
    history: History,
) -> Metrics:
    """Score the best checkpoint on the validation and test images, and write report/ and, last of all, metrics.json.

    All ranks score, the first one writes.

    Returns:
        What metrics.json holds.
    """
    faces, parts, classes = data.faces, data.parts, data.faces.classes
    best, best_epoch = best_checkpoint(trainer), trainer.current_epoch - 1
    if best is None:
        log.warning("callbacks.checkpoint is off: the last weights are scored, not the best ones")
    else:
        state = read_checkpoint(best)
        classifier.load_state_dict(state["state_dict"])
        best_epoch = state["epoch"]
    val = predict(trainer, classifier, data.evaluation_loader(parts.val), faces, parts.clean)
    test = predict(trainer, classifier, data.evaluation_loader(parts.test), faces, parts.clean)
    metrics = scores("val", val.logits, faces.labels[val.rows], classes)
    metrics |= test_scores(test, classes)
    metrics |= {
        "train/seconds": round(history.fit_seconds, 1),
        "train/images_per_second": round(history.images_per_second, 1),
        "train/epochs": trainer.current_epoch,
        "train/best_epoch": best_epoch,
        "data/source": faces.source,
        "data/twins": settings["data"]["twins"],
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
        about=about(settings, data, classifier, trainer, run_dir),
        monitor=settings["monitor"]["metric"],
        mode=settings["monitor"]["mode"],
        best_epoch=None if best is None else best_epoch,
    )
    matrices = {"val": confusion_of(val.predictions, classes), "test": confusion_of(test.predictions, classes)}
    report = tables.classification_report(matrices["test"], classes)
    tracking.log_results(
        trainer.loggers,
        step=trainer.global_step,
        metrics=metrics,
        report=report,
        confusions={split: tables.confusion_matrix(matrix, classes) for split, matrix in matrices.items()},
        predictions=test.predictions,
        images=images,
        checkpoint=best,
    )
    # Its being there says that the run has come to its end.
    write_atomically(run_dir / METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
    tables.print_report(report, title=f"{faces.source}, {settings['protocol']['name']}: test images, per class")
    print(f"report   {index}")
    return metrics


def class_counts(data: FERDataModule) -> dict[str, dict[str, int]]:
    """Training images per class "before" and "after" resampling."""
    classes = data.faces.classes
    return {
        "before": dict(zip(classes, data.faces.counts(data.parts.train, training=True).tolist(), strict=True)),
        "after": dict(zip(classes, data.class_counts.tolist(), strict=True)),
    }


def confusion_of(predictions: pd.DataFrame, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """The confusion matrix of a table of predictions: int64 (C, C)."""
    labels, guesses = (tables.labels_of(predictions, classes, column) for column in ("label", "prediction"))
    return confusion(labels, guesses, len(classes))


def best_checkpoint(trainer: L.Trainer) -> Path | None:
    """The best checkpoint of a trainer that has trained, if it keeps any."""
    paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return Path(paths[0]) if paths and paths[0] else None


def about(
    settings: Mapping[str, Any], data: FERDataModule, classifier: FERClassifier, trainer: L.Trainer, run_dir: Path
) -> dict[str, str]:
    """What a run was, in words, for the head of its report."""
    device = trainer.strategy.root_device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    parameters = sum(p.numel() for p in classifier.network.parameters())
    model = settings["model"]
    name = str(model["_target_"]).rpartition(".")[2] + (f"-{model['depth']}" if "depth" in model else "")
    parts = data.parts
    return {
        "name": "/".join(run_dir.parts[-2:]),
        "data": data.faces.source,
        "protocol": settings["protocol"]["name"],
        "images": f"{len(parts.train):,} train, {len(parts.val):,} val, {len(parts.test):,} test",
        **({"cleaned": data.cleaned} if data.cleaned else {}),
        "imbalance": settings["imbalance"]["name"],
        "network": f"{name}, {model.get('stem', '')} stem, {parameters:,} parameters",
        "seed": str(settings["seed"]),
        "hardware": f"{hardware}, {settings['trainer']['precision']}, {torch.get_num_threads()} threads",
        "versions": f"fer-lightning {__version__}, torch {torch.__version__}, lightning {version('lightning')}, "
        f"Python {platform.python_version()}",
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def git_commit() -> str:
    """The commit of this source tree, with "+" where it was changed since; "none" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"
