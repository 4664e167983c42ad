"""Confident learning: finds likely label errors with out-of-sample predictions.

Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of Artificial
Intelligence Research 70, section 3. Implemented from the paper.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Confident(NamedTuple):
    """Result of confident learning.

    Attributes:
        rows: int64 (M,), positions of likely label errors, the largest margin first.
        suggested: int64 (M,), their confident classes.
        margins: float64 (M,), probability of that class minus that of the given one.
    """

    rows: NDArray[np.int64]
    suggested: NDArray[np.int64]
    margins: NDArray[np.float64]


def confident_learning(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Confident:
    """Label errors: the off-diagonals of the confident joint (equation 1), ranked by margin.

    The confident class of an image is the most probable one among those that reach their threshold, if any does: the
    mean probability of the class over the images with that label (equation 2), infinite for a class without images. An
    image whose given class is the most probable of all is no error, although it is off the diagonal if that class
    misses a high threshold.

    Args:
        labels: int64 (N,), given classes, 0 to C − 1.
        probabilities: float64 (N, C), of a network that was not trained on these images.
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    reaching = np.where(probabilities >= thresholds, probabilities, -1.0)
    confident = np.where(reaching.max(1) >= 0, reaching.argmax(1), -1)
    margins = probabilities[np.arange(len(labels)), confident] - own
    errors = np.flatnonzero((confident >= 0) & (confident != labels) & (margins > 0))
    errors = errors[np.argsort(-margins[errors], kind="stable")]
    return Confident(errors, confident[errors], margins[errors])
