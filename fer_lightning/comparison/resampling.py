"""Bootstrap over test images and seeds, and simultaneous confidence intervals from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fer_lightning.comparison.collect import Setting
from fer_lightning.metrics.scores import TESTED
from fer_lightning.metrics.sums import Sums

Floats = NDArray[np.float64]

LEVEL = 0.95
CHUNK = 200  # resamples at once: 200 × 7,178 weights are 6 MB


def resampled(settings: Sequence[Setting], resamples: int, seed: int = 0) -> dict[str, Floats]:
    """Tested scores of each setting, mean over seeds, in bootstrap resamples of test images and seeds.

    The images drawn, with replacement, are the same for all settings and scores, so that differences are paired. The
    variation due to seeds is drawn by `seed_noise`.

    Returns:
        Float (settings, resamples) for each tested score.
    """
    rng = np.random.default_rng(seed)
    runs = [run for setting in settings for run in setting.runs]
    n_classes, n_images = len(runs[0].classes), len(runs[0].predictions)
    # One column for each cell of each run's confusion matrix: a weighted sum over images fills all of them at once.
    cells = np.zeros((n_images, len(runs), n_classes**2), dtype=np.float32)
    for i, run in enumerate(runs):
        cells[np.arange(n_images), i, run.labels * n_classes + run.guesses] = 1
    flat = cells.reshape(n_images, -1)

    def tested(weights: NDArray[np.int64]) -> Floats:
        """Scores (S, B, runs) if image n counts weights[b, n] times."""
        matrices = (weights.astype(np.float32) @ flat).reshape(-1, len(runs), n_classes, n_classes)
        sums = Sums(matrices.astype(np.float64))
        return np.stack([metric.compute(sums) for metric in TESTED])

    observed = tested(np.ones((1, n_images), dtype=np.int64))[:, 0].T
    shares = np.full(n_images, 1 / n_images)
    sizes = [min(CHUNK, resamples - start) for start in range(0, resamples, CHUNK)]
    values = np.concatenate([tested(rng.multinomial(n_images, shares, size)) for size in sizes], axis=1)
    groups = np.repeat(np.arange(len(settings)), [len(setting.runs) for setting in settings])
    noise = seed_noise(rng, observed, groups, resamples)
    means = np.stack([values[:, :, groups == i].mean(2) for i in range(len(settings))], axis=1)
    return {metric.name: means[i] + noise[..., i] for i, metric in enumerate(TESTED)}


def seed_noise(rng: np.random.Generator, values: Floats, groups: NDArray[np.int64], resamples: int) -> Floats:
    """Variation that other seeds would have added to the means of settings.

    It is drawn from the deviations of all runs from the means of their settings: the few seeds of one setting may
    happen to lie close together, so the variance is assumed equal in all settings, including those with one seed. As
    it is estimated from few runs, each resample is scaled by √(ν / χ²(ν)), with ν = runs less settings degrees of
    freedom, as in Student's t. If every setting has one seed, the variance cannot be estimated and the noise is zero.

    Args:
        rng: to draw with.
        values: scores of each run (R, S).
        groups: number of the setting of each run (R,).
        resamples: B.

    Returns:
        Float (settings, B, S). The scores of one draw come from one run, which keeps their correlation.
    """
    sizes = np.bincount(groups)
    repeated = [values[groups == group] for group in np.flatnonzero(sizes > 1)]
    if not repeated:
        return np.zeros((len(sizes), resamples, values.shape[1]))
    # Deviations from the means, scaled to unbiased variance.
    residuals = np.concatenate([(v - v.mean(0)) * np.sqrt(len(v) / (len(v) - 1)) for v in repeated])
    free = len(residuals) - len(repeated)
    scale = np.sqrt(free / rng.chisquare(free, resamples))[:, None]
    return np.stack([rng.choice(residuals, (resamples, size)).mean(1) * scale for size in sizes])


def simultaneous(observed: Floats, resampled: Floats) -> tuple[Floats, Floats]:
    """Simultaneous 95 % confidence intervals: in about 95 % of cases all of them cover.

    Each is the difference ± q standard errors. q is the 95 % quantile of the largest standardised deviation among all
    differences (Westfall & Young 1993, single-step maxT), which accounts for the correlation between them.

    Args:
        observed: differences (D,).
        resampled: the same in each resample (D, B).
    """
    error = resampled.std(1)
    deviation = np.abs(resampled - resampled.mean(1, keepdims=True)) / np.where(error > 0, error, 1)[:, None]
    q = np.quantile(deviation.max(0), LEVEL)
    return observed - q * error, observed + q * error
