"""Metrics of an epoch, accumulated on the device.

The states are sums, so that ranks add up exactly; nothing is averaged over batches or devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fer_lightning.data.table import UNLABELLED
from fer_lightning.metrics.scores import scores
from fer_lightning.metrics.sums import ECE_BINS, Sums

SUMS = torch.float32 if torch.backends.mps.is_available() else torch.float64  # Apple GPUs have no float64


class ClassificationScores(Metric):
    """Accumulates the logits and labels of an epoch; `compute` returns all of `fer_lightning.metrics.scores`.

    Args:
        classes: class names in label order.
    """

    full_state_update = False
    confusion: Tensor
    bins: Tensor
    loss_sum: Tensor

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)
        n = len(self.classes)
        self.add_state("confusion", torch.zeros(n, n, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("bins", torch.zeros(ECE_BINS, 3, dtype=SUMS), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=SUMS), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, C), labels (B,); unlabelled images are left out."""
        known = labels != UNLABELLED
        logits, labels = logits[known].float().to(SUMS), labels[known]
        predictions, confidence = logits.argmax(1), logits.softmax(1).amax(1)
        n = len(self.classes)
        self.confusion += torch.bincount(labels * n + predictions, minlength=n * n).view(n, n)
        # As `metrics.sums.calibration_bins`, without a copy to the CPU.
        bin_of = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
        rows = torch.stack([torch.ones_like(confidence), confidence, (predictions == labels).to(SUMS)], 1)
        self.bins += torch.zeros_like(self.bins).index_add_(0, bin_of, rows)
        self.loss_sum += F.cross_entropy(logits, labels, reduction="sum")

    def compute(self) -> dict[str, float]:
        """The scores of all images since the last reset."""
        sums = Sums(self.confusion.cpu().numpy(), self.bins.cpu().numpy(), float(self.loss_sum))
        return scores(sums, self.classes)


class Predictions(Metric):
    """Collects the row and the logits of every scored image, whichever rank scored it."""

    full_state_update = False
    rows: list[Tensor]
    logits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, logits: Tensor) -> None:
        """Add a batch: rows (B,), logits (B, C)."""
        self.rows.append(rows)
        self.logits.append(logits.float())

    def compute(self) -> tuple[NDArray[np.int64], Tensor]:
        """Rows, ascending, int64 (N,), and their logits, float32 (N, C), on the CPU."""
        rows, order = dim_zero_cat(self.rows).cpu().sort()
        return rows.numpy(), dim_zero_cat(self.logits).cpu()[order]
