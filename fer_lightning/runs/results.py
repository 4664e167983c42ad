"""Results of a run: predictions, metrics and the commit."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fer_lightning.data.table import SPLITS, UNLABELLED, FaceTable
from fer_lightning.metrics import scores as metrics
from fer_lightning.metrics.calibration import Calibration, calibrated, fit
from fer_lightning.metrics.sums import Sums, accuracy_interval, calibration_bins, confusion
from fer_lightning.report import tables

Metrics = dict[str, float | str]


class Scored(NamedTuple):
    """Images that passed through the network once, in table order.

    Attributes:
        predictions: one row per image, see `tables.predictions`.
        logits: float32 (N, C).
        rows: int64 (N,), their rows in the face table.
    """

    predictions: pd.DataFrame
    logits: torch.Tensor
    rows: NDArray[np.int64]

    @classmethod
    def from_logits(
        cls, faces: FaceTable, rows: NDArray[np.int64], logits: torch.Tensor, clean: NDArray[np.bool_]
    ) -> Scored:
        """Predictions from logits.

        Args:
            faces: the table that the images come from.
            rows: int64 (N,), their rows.
            logits: float (N, C).
            clean: bool (len(faces),), see `Partition.clean`.
        """
        splits = [SPLITS[split] for split in faces.split[rows]]
        probabilities = logits.double().softmax(1).numpy()
        ids = [name.decode() for name in faces.ids[rows].tolist()]
        table = tables.predictions(ids, splits, faces.labels[rows], probabilities, clean[rows], faces.classes)
        return cls(table, logits, rows)


def scores(
    prefix: str,
    logits: torch.Tensor,
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    calibration: Calibration | None = None,
) -> Metrics:
    """Scores of labelled images with the confidence interval of their accuracy; empty where there are none.

    With a calibration, also "ece_calibrated" and, of the predictions that are not unsure, "coverage", their share, and
    "accuracy_sure".
    """
    sums = sums_of(logits, labels)
    if not sums.images:
        return {}
    values = metrics.scores(sums, classes)
    values["accuracy_low"], values["accuracy_high"] = accuracy_interval(int(sums.hits.sum()), int(sums.images))
    if calibration is not None:
        after = sums_of(logits / calibration.temperature, labels)
        values["ece_calibrated"] = float(metrics.calibration_error(after))
        known = labels != UNLABELLED
        p = calibrated(logits[torch.from_numpy(known)].numpy(), calibration.temperature)
        sure = p.max(1) >= calibration.threshold
        values["coverage"] = float(sure.mean())
        values["accuracy_sure"] = float((p.argmax(1) == labels[known])[sure].mean()) if sure.any() else 0.0
    return {f"{prefix}/{name}": value for name, value in values.items()}


def fit_calibration(logits: torch.Tensor, labels: NDArray[np.int64]) -> Calibration | None:
    """The calibration on the labelled images among those of logits (N, C); None where there are none."""
    known = labels != UNLABELLED
    return fit(logits[torch.from_numpy(known)].numpy(), labels[known]) if known.any() else None


def sums_of(logits: torch.Tensor, labels: NDArray[np.int64]) -> Sums:
    """Sums over the labelled images of logits, float (N, C), and labels, int64 (N,)."""
    known = labels != UNLABELLED
    labels, logits = labels[known], logits[torch.from_numpy(known)].double()
    return Sums(
        confusion(labels, logits.argmax(1).numpy(), logits.shape[1]),
        calibration_bins(logits.softmax(1).numpy(), labels),
        float(F.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")),
    )


def test_scores(test: Scored, classes: tuple[str, ...], calibration: Calibration | None) -> Metrics:
    """Scores over all images and, as "test/clean/…", over those without a duplicate in the training data."""
    labels, clean = tables.labels_of(test.predictions, classes), test.predictions["clean"].to_numpy(copy=True)
    clean_scores = scores("test/clean", test.logits[torch.from_numpy(clean)], labels[clean], classes, calibration)
    return scores("test", test.logits, labels, classes, calibration) | clean_scores


@cache
def git_commit() -> str:
    """The commit of this source tree when it was first asked for, with "+" where files were changed or added; "none"
    outside a repository of its own: an installed package may lie in that of another project.

    The environment variable FER_LIGHTNING_COMMIT names that of a copy without its history.
    """
    if commit := os.environ.get("FER_LIGHTNING_COMMIT"):
        return commit
    tree = Path(__file__).resolve().parents[2]
    try:
        if not Path(_git(tree, "rev-parse", "--show-toplevel")).samefile(tree):
            return "none"
        commit = _git(tree, "describe", "--always", "--dirty=+", "--exclude=*")
        added = _git(tree, "ls-files", "--others", "--exclude-standard", "--", "fer_lightning", "conf", "train.py")
        return f"{commit}+" if added and not commit.endswith("+") else commit
    except (OSError, subprocess.SubprocessError):
        return "none"


def _git(tree: Path, *arguments: str) -> str:
    command = ["git", "-C", str(tree), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
