"""Bootstrap over test images and seeds, and simultaneous confidence intervals from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    from scipy.sparse import csr_array

    rng = np.random.default_rng(seed)
    runs = [run for setting in settings for run in setting.runs]
    n_classes, n_images = len(runs[0].classes), len(runs[0].predictions)
    # A column for each image, a row for each cell of each run's confusion matrix, most of them 0: a weighted sum over
    # images fills all cells at once.
    cell = np.stack([i * n_classes**2 + run.labels * n_classes + run.guesses for i, run in enumerate(runs)])
    image = np.broadcast_to(np.arange(n_images), cell.shape)
    shape = (len(runs) * n_classes**2, n_images)
    cells = csr_array((np.ones(cell.size), (cell.ravel(), image.ravel())), shape=shape)

    def tested(weights: NDArray[np.int64]) -> Floats:
        """Scores (S, B, runs) if image n counts weights[b, n] times."""
        matrices = (cells @ weights.T.astype(np.float64)).T.reshape(-1, len(runs), n_classes, n_classes)
        sums = Sums(matrices)
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


def simultaneous(observed: Floats, resampled: Iterable[Floats]) -> tuple[Floats, Floats]:
    """Simultaneous 95 % confidence intervals: in about 95 % of cases all of them cover.

    Each is the difference ± q standard errors. q is the 95 % quantile of the largest standardised deviation among all
    differences (Westfall & Young 1993, single-step maxT), which accounts for the correlation between them.

    Args:
        observed: differences (D,).
        resampled: the same in each resample, as parts (D₁, B), (D₂, B), …, of which one is in memory at a time.
    """
    errors, largest = [], np.zeros(1)
    for part in resampled:
        of_part = part.std(1)
        deviation = np.abs(part - part.mean(1, keepdims=True)) / np.where(of_part > 0, of_part, 1)[:, None]
        largest = np.maximum(largest, deviation.max(0))
        errors.append(of_part)
    error, q = np.concatenate(errors), np.quantile(largest, LEVEL)
    return observed - q * error, observed + q * error
