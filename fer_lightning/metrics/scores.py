"""The list of metrics. A new one is a function and an entry in `METRICS`.

Training and its log, metrics.json, the report page, `fer-lightning compare`, the W&B dashboard and the check of
`monitor` all read this list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fer_lightning.metrics.sums import Sums

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """An entry of the list.

    Attributes:
        name: key in metrics.json after "test/" or "val/"; for a metric of a class, the class name follows.
        compute: from sums over images to the score (...), or (..., C) for a metric of each class.
        title: for people; empty if the metric is written to files only.
        mode: whether the best value is the largest or the smallest.
        headline: whether it heads the report page and is a column of `compare` and a panel of the dashboard.
        tested: whether `compare` tests differences in it. `compute` must then need the confusion matrix only, which is
            what the bootstrap resamples, and broadcast over leading dimensions.
    """

    name: str
    compute: Callable[[Sums], Values]
    title: str = ""
    mode: Literal["max", "min"] = "max"
    headline: bool = False
    tested: bool = False

    @property
    def phrase(self) -> str:
        """The title inside a sentence."""
        return self.title[:1].lower() + self.title[1:] if self.title[1:2].islower() else self.title


def accuracy(sums: Sums) -> Values:
    return _share(sums.hits.sum(-1), sums.images)


def balanced_accuracy(sums: Sums) -> Values:
    """Mean recall over the classes that occur."""
    return _share(recall(sums).sum(-1), (sums.support > 0).sum(-1))


def precision(sums: Sums) -> Values:
    return _share(sums.hits, sums.predicted)


def recall(sums: Sums) -> Values:
    return _share(sums.hits, sums.support)


def f1(sums: Sums) -> Values:
    return _share(2 * sums.hits, sums.support + sums.predicted)


def support(sums: Sums) -> Values:
    return sums.support.astype(np.float64)


def macro(of_classes: Callable[[Sums], Values]) -> Callable[[Sums], Values]:
    """The mean over all classes, as in scikit-learn with all of them in `labels`."""
    return lambda sums: of_classes(sums).mean(-1)


def weighted(of_classes: Callable[[Sums], Values]) -> Callable[[Sums], Values]:
    """The mean over classes weighted by their support."""
    return lambda sums: _share(np.vecdot(of_classes(sums), support(sums)), sums.images)


def calibration_error(sums: Sums) -> Values:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
    assert sums.bins is not None
    images, confidence, hits = np.moveaxis(sums.bins, -1, 0)
    return _share(np.abs(confidence - hits).sum(-1), images.sum(-1))


def cross_entropy(sums: Sums) -> Values:
    """Mean cross-entropy in nats, without weights, smoothing or margins, whichever loss the network is trained with."""
    assert sums.cross_entropy is not None
    return _share(np.asarray(sums.cross_entropy), sums.images)


METRICS = (
    Metric("accuracy", accuracy, "Accuracy", headline=True, tested=True),
    Metric("balanced_accuracy", balanced_accuracy, "Balanced accuracy", headline=True, tested=True),
    Metric("f1_macro", macro(f1), "Macro-F1", headline=True, tested=True),
    Metric("f1_weighted", weighted(f1), "Weighted F1"),
    Metric("precision_macro", macro(precision), "Macro precision"),
    Metric("precision_weighted", weighted(precision)),
    Metric("recall_macro", macro(recall), "Macro recall"),
    Metric("recall_weighted", weighted(recall)),  # equals the accuracy
    Metric("ece", calibration_error, "Calibration error (ECE)", mode="min", headline=True),
    Metric("loss", cross_entropy, "Loss (cross-entropy)", mode="min"),
)
"""Metrics of a set of images, in the order in which they are shown."""

CLASS_METRICS = (
    Metric("precision", precision, "Precision"),
    Metric("recall", recall, "Recall", headline=True),
    Metric("f1", f1, "F1", headline=True),
    Metric("support", support, "Support"),
)
"""Metrics of each class of a set of images."""

HEADLINES = tuple(metric for metric in METRICS if metric.headline)
CLASS_HEADLINES = tuple(metric for metric in CLASS_METRICS if metric.headline)

PRIMARY = "f1_macro"
"""The metric that comparisons report first and sort by."""

TESTED = tuple(sorted((metric for metric in METRICS if metric.tested), key=lambda metric: metric.name != PRIMARY))


def by_name(classes: Sequence[str]) -> dict[str, Metric]:
    """Every metric by its key in metrics.json, less the prefix of the set of images: "f1_macro", "recall/happy"."""
    of_classes = {f"{metric.name}/{name}": metric for metric in CLASS_METRICS for name in classes}
    return {metric.name: metric for metric in METRICS} | of_classes


def scores(
    sums: Sums,
    classes: Sequence[str],
    metrics: Sequence[Metric] = METRICS,
    class_metrics: Sequence[Metric] = CLASS_METRICS,
) -> dict[str, float]:
    """Metrics of one set of images, with the keys of `by_name`.

    Precision, recall and F1 are those of scikit-learn with `zero_division=0`.
    """
    of_classes = {
        f"{metric.name}/{name}": float(value)
        for metric in class_metrics
        for name, value in zip(classes, metric.compute(sums), strict=True)
    }
    return {metric.name: float(metric.compute(sums)) for metric in metrics} | of_classes


def _share(part: NDArray[Any], of: NDArray[Any]) -> Values:
    """The quotient, 0 where the denominator is."""
    quotient: Values = part / np.maximum(of, 1)
    return quotient
