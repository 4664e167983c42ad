"""Sums over images from which every score follows; those of batches and ranks add up exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.table import UNLABELLED

ECE_BINS = 15


@dataclass(frozen=True)
class Sums:
    """Sums over the labelled images of a set. Leading dimensions, if any, are those of many such sets.

    Attributes:
        confusion: (..., C, C), from `confusion`; counts, or weighted counts in a resample.
        bins: (..., ECE_BINS, 3), from `calibration_bins`; None if no calibration error is wanted.
        cross_entropy: (...), summed over images, in nats; None if no loss is wanted.
    """

    confusion: NDArray[Any]
    bins: NDArray[Any] | None = None
    cross_entropy: NDArray[Any] | float | None = None

    @cached_property
    def hits(self) -> NDArray[Any]:
        """Images of each class that were predicted correctly (..., C)."""
        return np.diagonal(self.confusion, axis1=-2, axis2=-1)

    @cached_property
    def support(self) -> NDArray[Any]:
        """Images of each class (..., C)."""
        return self.confusion.sum(-1)  # type: ignore[no-any-return]

    @cached_property
    def predicted(self) -> NDArray[Any]:
        """Predictions of each class (..., C)."""
        return self.confusion.sum(-2)  # type: ignore[no-any-return]

    @cached_property
    def images(self) -> NDArray[Any]:
        """All images (...)."""
        return np.asarray(self.support.sum(-1))


def confusion(labels: NDArray[Any], predictions: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Counts, int64 (C, C): rows are true classes, columns are predicted ones. Unlabelled images are left out."""
    known = labels != UNLABELLED
    cells = labels[known] * n_classes + predictions[known]
    return np.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def calibration_bins(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Per bin of confidence the number of images, their summed confidence and hits: float64 (ECE_BINS, 3).

    Bins are of equal width and closed on the right, as in Guo et al. 2017 (arXiv:1706.04599).

    Args:
        probabilities: (N, C).
        labels: (N,); unlabelled images are left out.
    """
    known = labels != UNLABELLED
    p, labels = probabilities[known].astype(np.float64), labels[known]
    confidence, hits = p.max(1), p.argmax(1) == labels
    bin_of = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64), 1, ECE_BINS) - 1
    return np.stack([np.bincount(bin_of, weights, ECE_BINS) for weights in (np.ones(len(p)), confidence, hits)], 1)


def accuracy_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % score interval of the accuracy over the test images (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    It has a width for 0 and n hits as well, where a bootstrap has none.
    """
    z = NormalDist().inv_cdf(0.975)
    centre = (hits + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(hits * (n - hits) / n + z**2 / 4) / (n + z**2)
    return max(centre - half, 0.0), min(centre + half, 1.0)
