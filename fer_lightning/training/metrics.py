"""Every score of a classifier, from one confusion matrix and one set of probabilities.

The states are sums, so that ranks add up exactly; nothing is averaged over batches or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fer_lightning.data.table import UNLABELLED

ECE_BINS = 15
SUMS = torch.float32 if torch.backends.mps.is_available() else torch.float64  # Apple GPUs have no float64


def confusion(labels: NDArray[Any], predictions: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Counts, int64 (C, C): rows are true classes, columns are predicted ones. Unlabelled images are left out."""
    known = labels != UNLABELLED
    cells = labels[known] * n_classes + predictions[known]
    return np.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def scores(confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """Scores by name, as scikit-learn defines them with `zero_division=0`.

    `balanced_accuracy` is the mean recall over the classes that occur; macro averages run over all classes, weighted
    ones by support.
    """
    hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    n = max(int(support.sum()), 1)
    result = {"accuracy": float(hits.sum() / n)}
    result["balanced_accuracy"] = float(recall[support > 0].mean()) if support.any() else 0.0
    for name, values in (("f1", f1), ("precision", precision), ("recall", recall)):
        result[f"{name}_macro"] = float(values.mean())
        result[f"{name}_weighted"] = float(values @ support / n)
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        result |= {f"{name}/{label}": float(value) for label, value in zip(classes, values, strict=True)}
    return result


def expected_calibration_error(bins: NDArray[Any]) -> float:
    """ECE (Guo et al. 2017, arXiv:1706.04599, equation 3) from `bins` (ECE_BINS, 3): images, confidence, hits."""
    images, confidence, hits = bins.T
    return float(np.abs(confidence - hits).sum() / max(images.sum(), 1))


def calibration_bins(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Per bin of confidence the number of images, their summed confidence and hits: float64 (ECE_BINS, 3).

    Bins are of equal width and closed on the right, as in the paper.
    """
    confidence, predictions = probabilities.to(SUMS).max(1)
    bin_of = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    rows = torch.stack([torch.ones_like(confidence), confidence, (predictions == labels).to(SUMS)], 1)
    return torch.zeros(ECE_BINS, 3, dtype=SUMS, device=rows.device).index_add_(0, bin_of, rows)


def accuracy_interval(hits: int, n: int, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the accuracy over the test images.

    Drawing n images with replacement from n, of which `hits` are right, gives a binomial number of right ones: the
    resamples are drawn from that distribution itself.
    """
    accuracies = np.random.default_rng(seed).binomial(n, hits / n, resamples) / n
    low, high = np.percentile(accuracies, [2.5, 97.5])
    return float(low), float(high)


class ClassificationScores(Metric):
    """Collects logits and labels of an epoch; `compute` gives the flat dictionary of `scores`, loss and ECE.

    Args:
        classes: class names in label order.
        local: on several devices, score what this one has seen, not what all of them have.
    """

    full_state_update = False
    confusion: Tensor
    bins: Tensor
    loss_sum: Tensor

    def __init__(self, classes: Sequence[str], local: bool = False) -> None:
        super().__init__(sync_on_compute=not local)
        self.classes = list(classes)
        n = len(self.classes)
        self.add_state("confusion", torch.zeros(n, n, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("bins", torch.zeros(ECE_BINS, 3, dtype=SUMS), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=SUMS), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, C), labels (B,); unlabelled images are left out."""
        known = labels != UNLABELLED
        logits, labels = logits[known].float(), labels[known]
        n = len(self.classes)
        cells = labels * n + logits.argmax(1)
        self.confusion += torch.bincount(cells, minlength=n * n).view(n, n)
        self.bins += calibration_bins(logits.to(SUMS).softmax(1), labels)
        self.loss_sum += F.cross_entropy(logits.to(SUMS), labels, reduction="sum")

    def compute(self) -> dict[str, float]:
        """Scores of everything seen since the last reset; `loss` is the plain mean cross-entropy, in nats,
        whatever loss was trained on."""
        confusion = self.confusion.cpu().numpy()
        n = max(int(confusion.sum()), 1)
        return {"loss": float(self.loss_sum) / n, "ece": expected_calibration_error(self.bins.cpu().numpy())} | scores(
            confusion, self.classes
        )


class Predictions(Metric):
    """Keeps every scored image's row and logits, whichever rank saw it."""

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
