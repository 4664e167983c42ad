"""Calibration: a temperature for the logits, and the confidence below which a prediction counts as unsure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREFIX = "calibration/"
"""Prefix of the fields of a `Calibration` in metrics.json."""

TEMPERATURES = (0.05, 20.0)
"""Range of temperatures that are searched."""

SURE_ACCURACY = 0.8
"""Accuracy of the predictions that are not unsure, on the images that the threshold is chosen on."""

NEVER_SURE = 2.0
"""Threshold above every confidence."""

FEWEST_SURE = 20
"""Predictions that an accuracy is judged by, at the least."""


@dataclass(frozen=True)
class Calibration:
    """Fitted on validation images.

    Attributes:
        temperature: the logits are divided by it before the softmax (Guo et al. 2017, arXiv:1706.04599, section 4.2).
        threshold: predictions of a lower confidence count as unsure; `NEVER_SURE` if all of them do.
        coverage: share of the validation images whose prediction is not unsure; None if it was not measured.
        accuracy: accuracy of those predictions, 0 if there are none; None if it was not measured.

    Raises:
        ValueError: a temperature or threshold out of its range.
    """

    temperature: float = 1.0
    threshold: float = 0.0
    coverage: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf and 0 <= self.threshold < math.inf):
            raise ValueError(f"temperature {self.temperature} or threshold {self.threshold} is out of range")


def entries(calibration: Calibration | None) -> dict[str, float]:
    """The known fields of a calibration for metrics.json; none of None."""
    values = asdict(calibration) if calibration else {}
    return {f"{PREFIX}{name}": value for name, value in values.items() if value is not None}


def fit(logits: NDArray[Any], labels: NDArray[np.int64]) -> Calibration:
    """The temperature of the lowest cross-entropy, and the lowest threshold from which on predictions are accurate.

    Args:
        logits: float (N, C), of labelled images that the network was not trained on.
        labels: int64 (N,).
    """
    temperature = fit_temperature(logits, labels)
    return Calibration(temperature, *choose_threshold(calibrated(logits, temperature), labels))


def calibrated(logits: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Probabilities, float64 (N, C), of logits (N, C) divided by a temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    odds = np.exp(scaled - scaled.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)  # type: ignore[no-any-return]


def fit_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The temperature that minimises the cross-entropy of logits, float (N, C), with labels (N,).

    The cross-entropy is convex in the inverse temperature, so that there is one minimum; where it lies outside
    `TEMPERATURES`, as for predictions that are all right, the end of the range is returned.
    """
    from scipy.optimize import minimize_scalar  # takes half a second, and predicting does without it
    from scipy.special import log_softmax

    logits = np.asarray(logits, np.float64)
    rows = np.arange(len(labels))
    found = minimize_scalar(
        lambda log_t: -log_softmax(logits / np.exp(log_t), axis=1)[rows, labels].mean(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(np.exp(found.x))


def choose_threshold(
    probabilities: NDArray[Any], labels: NDArray[np.int64], sure_accuracy: float = SURE_ACCURACY
) -> tuple[float, float, float]:
    """The lowest confidence from which on predictions are right often enough, their share and their accuracy.

    Args:
        probabilities: float (N, C).
        labels: int64 (N,).
        sure_accuracy: accuracy that the predictions at or above the threshold have together.

    Returns:
        Threshold, coverage and accuracy; (`NEVER_SURE`, 0, 0) if no number of most confident predictions, from
        `FEWEST_SURE` on, is that accurate.
    """
    confidence, hits = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(-confidence, kind="stable")
    accuracy = np.cumsum(hits[order]) / np.arange(1, len(order) + 1)
    enough = accuracy >= sure_accuracy
    enough[: FEWEST_SURE - 1] = False
    # Equal confidences are above or below the threshold together.
    enough[:-1] &= confidence[order][:-1] > confidence[order][1:]
    if not enough.any():
        return NEVER_SURE, 0.0, 0.0
    last = int(np.flatnonzero(enough)[-1])
    return float(confidence[order][last]), (last + 1) / len(order), float(accuracy[last])
