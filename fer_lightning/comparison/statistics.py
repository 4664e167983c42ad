"""Scores of settings with their spread over seeds, and which differences between settings are beyond chance.

Two things vary: which images happen to be in the test set, and what a training run makes of its seed. Intervals come
from resampling both; tests are paired, since all settings are scored on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fer_lightning.comparison.collect import FinishedRun, Setting
from fer_lightning.errors import UserError
from fer_lightning.training.metrics import calibration_bins, confusion, expected_calibration_error, scores

Floats = NDArray[np.float64]

TESTED = {"f1_macro": "macro-F1", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
"""Scores that settings are tested by, and their names for people."""

LEVEL = 0.95
CHUNK = 200  # resamples at once: 200 × 7,178 weights are 6 MB


@dataclass(frozen=True)
class Comparison:
    """What is known about some settings.

    Attributes:
        settings: as compared.
        baseline: name of the one that the others are held against.
        runs: a row a run: setting, seed, folder, and every score.
        table: a row a setting, in their order: setting, seeds, and of every score its mean and, as `<score>_sd`, its
            standard deviation over seeds (n − 1; missing for one seed).
        intervals: a row a setting: `<score>_low` and `<score>_high` of the tested scores, 95 %, each for itself.
        pairs: a row a pair of settings (a, b): of each tested score `<score>_difference` (a − b), its simultaneous 95 %
            interval over all pairs and scores `<score>_low`, `<score>_high`, and whether that leaves out zero,
            `<score>_differs`; McNemar's p, `mcnemar_p`, and the same corrected by Holm, `mcnemar_p_holm`.
    """

    settings: tuple[Setting, ...]
    baseline: str
    runs: pd.DataFrame
    table: pd.DataFrame
    intervals: pd.DataFrame
    pairs: pd.DataFrame


def compare(
    settings: Sequence[Setting], *, baseline: str | None = None, resamples: int = 4000, seed: int = 0
) -> Comparison:
    """Score, resample and test.

    Args:
        settings: scored on the same images.
        baseline: name of the one to hold the others against; by default `none`, or the first.
        resamples: of test images and seeds.
        seed: of the resampling.

    Raises:
        UserError: there is no setting of the name of the baseline.
    """
    names = [setting.name for setting in settings]
    if baseline is None:
        baseline = next((name for name in names if name.partition(",")[0] == "none"), names[0])
    elif baseline not in names:
        raise UserError(f"--baseline {baseline}: there are {'; '.join(names)}")
    runs = pd.DataFrame(
        [
            {"setting": setting.name, "seed": run.seed, "folder": str(run.folder), **run_scores(run)}
            for setting in settings
            for run in setting.runs
        ]
    )
    groups = runs.drop(columns=["seed", "folder"]).groupby("setting", sort=False)
    mean, sd = groups.mean(), groups.std().add_suffix("_sd")
    columns = [name for score in mean.columns for name in (score, f"{score}_sd")]
    table = pd.concat([groups.size().rename("seeds"), mean, sd], axis=1)[["seeds", *columns]].reset_index()

    drawn = resampled(settings, resamples, seed)
    tail = 100 * (1 - LEVEL) / 2
    intervals = pd.DataFrame({"setting": table["setting"]})
    for score, values in drawn.items():
        intervals[f"{score}_low"], intervals[f"{score}_high"] = np.percentile(values, [tail, 100 - tail], axis=1)
    return Comparison(tuple(settings), baseline, runs, table, intervals, _pairs(settings, table, drawn))


def run_scores(run: FinishedRun) -> dict[str, float]:
    """Scores of one run, as in its metrics.json; per class only recall and F1."""
    labels = run.labels
    values = scores(confusion(labels, run.guesses, len(run.classes)), run.classes)
    bins = calibration_bins(torch.from_numpy(run.probabilities), torch.from_numpy(labels))
    chosen = {name: values[name] for name in TESTED}
    chosen["ece"] = expected_calibration_error(bins.numpy())
    return chosen | {f"{s}/{name}": values[f"{s}/{name}"] for s in ("recall", "f1") for name in run.classes}


def resampled(settings: Sequence[Setting], resamples: int, seed: int = 0) -> dict[str, Floats]:
    """Tested scores of each setting, mean over seeds, when images and seeds are drawn anew.

    The images drawn, with replacement, are the same for all settings and scores, so that differences are paired. What a
    seed adds is drawn by `seed_noise`.

    Returns:
        Of each tested score float (settings, resamples).
    """
    rng = np.random.default_rng(seed)
    runs = [run for setting in settings for run in setting.runs]
    n_classes, n_images = len(runs[0].classes), len(runs[0].predictions)
    labels = runs[0].labels
    # One column for each cell of each run's confusion matrix: a weighted sum over images fills all of them at once.
    cells = np.zeros((n_images, len(runs), n_classes**2), dtype=np.float32)
    for i, run in enumerate(runs):
        cells[np.arange(n_images), i, labels * n_classes + run.guesses] = 1
    flat = cells.reshape(n_images, -1)

    def tested(weights: NDArray[np.int64]) -> dict[str, Floats]:
        """Scores (B, runs) where images count as often as weights (B, N) say."""
        matrices = (weights.astype(np.float32) @ flat).reshape(-1, len(runs), n_classes, n_classes).astype(np.float64)
        hits, support, predicted = np.einsum("brii->bri", matrices), matrices.sum(3), matrices.sum(2)
        f1 = 2 * hits / np.maximum(support + predicted, 1)
        recall = (hits / np.maximum(support, 1)).sum(2) / (support > 0).sum(2)  # of classes that were drawn
        return {"accuracy": hits.sum(2) / n_images, "balanced_accuracy": recall, "f1_macro": f1.mean(2)}

    observed = np.stack([values[0] for values in tested(np.ones((1, n_images), dtype=np.int64)).values()], 1)
    chunks = [
        tested(rng.multinomial(n_images, np.full(n_images, 1 / n_images), min(CHUNK, resamples - start)))
        for start in range(0, resamples, CHUNK)
    ]
    groups = np.repeat(np.arange(len(settings)), [len(setting.runs) for setting in settings])
    noise = seed_noise(rng, observed, groups, resamples)
    drawn: dict[str, Floats] = {}
    for score, added in zip(chunks[0], np.moveaxis(noise, 2, 0), strict=True):
        values = np.concatenate([chunk[score] for chunk in chunks])
        drawn[score] = np.stack([values[:, groups == i].mean(1) for i in range(len(settings))]) + added
    return {score: drawn[score] for score in TESTED}


def seed_noise(rng: np.random.Generator, values: Floats, groups: NDArray[np.int64], resamples: int) -> Floats:
    """What other seeds might have added to the means of settings.

    It is drawn from the deviations of all runs from the means of their settings: the few seeds of one setting may
    happen to lie close together, so their spread is taken to be alike in all settings, those with one seed included.
    How large it is, is known from few runs only: each resample scales it by √(ν / χ²(ν)), ν runs less settings being
    its degrees of freedom, as Student's t does. Where every setting has one seed nothing is known of it, and nothing
    added.

    Args:
        rng: to draw with.
        values: scores of each run (R, S).
        groups: number of the setting of each run (R,).
        resamples: B.

    Returns:
        float (settings, B, S); the scores of one draw are those of one run.
    """
    sizes = np.bincount(groups)
    residuals = seed_residuals(values, groups)
    if not len(residuals):
        return np.zeros((len(sizes), resamples, values.shape[1]))
    free = len(residuals) - np.count_nonzero(sizes > 1)
    scale = np.sqrt(free / rng.chisquare(free, resamples))[:, None]
    return np.stack([rng.choice(residuals, (resamples, size)).mean(1) * scale for size in sizes])


def seed_residuals(values: Floats, groups: NDArray[np.int64]) -> Floats:
    """Deviations of runs from the means of their settings, unbiased in size; none where no setting has two runs.

    Args:
        values: scores of each run (R, S).
        groups: number of the setting of each run (R,).
    """
    parts = [values[groups == group] for group in np.unique(groups)]
    parts = [(part - part.mean(0)) * np.sqrt(len(part) / (len(part) - 1)) for part in parts if len(part) > 1]
    return np.concatenate(parts) if parts else np.empty((0, values.shape[1]))


def _pairs(settings: Sequence[Setting], table: pd.DataFrame, drawn: dict[str, Floats]) -> pd.DataFrame:
    from statsmodels.stats.multitest import multipletests

    indices = list(combinations(range(len(settings)), 2))
    if not indices:
        return pd.DataFrame()
    names = table["setting"]
    pairs = pd.DataFrame({"a": [names[i] for i, _ in indices], "b": [names[j] for _, j in indices]})
    observed = np.array([table[score][i] - table[score][j] for score in TESTED for i, j in indices])
    resampled = np.concatenate([[drawn[score][i] - drawn[score][j] for i, j in indices] for score in TESTED])
    low, high = (side.reshape(len(TESTED), -1) for side in simultaneous(observed, resampled))
    for k, (score, difference) in enumerate(zip(TESTED, observed.reshape(len(TESTED), -1), strict=True)):
        pairs[f"{score}_difference"], pairs[f"{score}_low"], pairs[f"{score}_high"] = difference, low[k], high[k]
        pairs[f"{score}_differs"] = (low[k] > 0) | (high[k] < 0)
    pairs["mcnemar_p"] = [mcnemar_p(settings[i], settings[j]) for i, j in indices]
    pairs["mcnemar_p_holm"] = multipletests(pairs["mcnemar_p"], method="holm")[1]
    return pairs


def simultaneous(observed: Floats, resampled: Floats) -> tuple[Floats, Floats]:
    """Intervals that hold together: all of them cover in about 95 % of cases.

    Each is the difference ± q standard errors, q being the 95 % quantile of the largest standardised deviation among
    all differences (Westfall & Young 1993, single-step maxT), so that what they have in common is made use of.

    Args:
        observed: differences (D,).
        resampled: the same in each resample (D, B).
    """
    error = resampled.std(1)
    deviation = np.abs(resampled - resampled.mean(1, keepdims=True)) / np.where(error > 0, error, 1)[:, None]
    q = np.quantile(deviation.max(0), LEVEL)
    return observed - q * error, observed + q * error


def mcnemar_p(a: Setting, b: Setting) -> float:
    """McNemar's exact test of equal accuracy on the same images (Dietterich 1998).

    It asks whether these networks differ; what other seeds would have made of the settings is not in it. Over several
    seeds, runs of the same seed are paired, or of the same place where seeds differ; twice the median of
    their p-values is one that holds however they depend on each other (Rüger 1978; Vovk & Wang 2020, arXiv:1212.4966).
    """
    from statsmodels.stats.contingency_tables import mcnemar

    of_b = {run.seed: run for run in b.runs}
    matched = [(run, of_b[run.seed]) for run in a.runs if run.seed in of_b] or list(zip(a.runs, b.runs, strict=False))
    p_values = []
    for one, other in matched:
        right = [run.guesses == run.labels for run in (one, other)]
        table = [[np.sum((right[0] == x) & (right[1] == y)) for y in (True, False)] for x in (True, False)]
        p_values.append(float(mcnemar(table, exact=True).pvalue))
    return min(1.0, 2 * float(np.median(p_values))) if len(p_values) > 1 else p_values[0]


def mean_shares(setting: Setting) -> Floats:
    """The confusion matrix as shares of each true class, mean over seeds: float (C, C)."""
    matrices = [confusion(run.labels, run.guesses, len(run.classes)) for run in setting.runs]
    mean: Floats = np.mean([matrix / np.maximum(matrix.sum(1, keepdims=True), 1) for matrix in matrices], axis=0)
    return mean


def conclusions(comparison: Comparison) -> list[str]:
    """What can and what cannot be concluded, in plain sentences."""
    table, pairs, settings = comparison.table, comparison.pairs, comparison.settings
    if len(settings) < 2:
        return ["One setting only: there is nothing to compare it with.", *_beside(settings[0])]
    few = min(len(setting.runs) for setting in settings)
    drawn = "test images" if few == 1 else "test images and seeds"
    sentences = []
    for score, title in TESTED.items():
        best = str(table["setting"][int(table[score].to_numpy().argmax())])
        beaten: list[str] = []
        open_: list[str] = []
        for row in pairs[(pairs["a"] == best) | (pairs["b"] == best)].to_dict("records"):
            other = row["b"] if row["a"] == best else row["a"]
            (beaten if row[f"{score}_differs"] else open_).append(str(other))
        value = shown(*table.loc[table["setting"] == best, [score, f"{score}_sd"]].iloc[0])
        told = f"By {title}, {best} is highest ({value})"
        if beaten:
            told += f"; the {drawn} tell it from {_listed(beaten)}"
        if open_:
            not_told = ", but not" if beaten else f"; the {drawn} do not tell it"
            told += f"{not_told} from {_listed(open_)}"
        sentences.append(told + ".")
        if len(settings) > 2 and best != comparison.baseline:
            sentences.append(_against(comparison, score, title))
    sentences.append(
        f"“Tell” means: zero is outside the interval of the difference; all {len(TESTED) * len(pairs)} intervals, of "
        f"{len(pairs)} pair{'s' * (len(pairs) > 1)} by {len(TESTED)} scores, hold together in about 95 % of cases."
    )
    sentences += _beside(settings[0])
    if few == 1:
        sentences.append(
            "Some settings have one seed: what is compared there is one trained network, not what it was trained by; "
            "another seed may turn the order round."
        )
    elif few < 5:
        sentences.append(
            f"With {few} seeds the spread over seeds is known roughly, and taken to be alike in all settings; "
            "differences of the size of the standard deviation should not be built on."
        )
    return sentences


def _beside(setting: Setting) -> list[str]:
    """What runs differ in and are not named by."""
    if not setting.beside:
        return []
    return [f"Beside names and seeds, runs differ in {_listed(setting.beside)}: what is scored is all of it together."]


def _against(comparison: Comparison, score: str, title: str) -> str:
    """Which settings the baseline is told from, and to which side."""
    told: dict[str, list[str]] = {"higher with": [], "lower with": [], "not told apart with": []}
    for row in comparison.pairs.to_dict("records"):
        if comparison.baseline not in (row["a"], row["b"]):
            continue
        first = row["b"] == comparison.baseline
        higher = (row[f"{score}_difference"] > 0) == first
        how = ("higher with" if higher else "lower with") if row[f"{score}_differs"] else "not told apart with"
        told[how].append(str(row["a"] if first else row["b"]))
    parts = [f"{how} {_listed(names)}" for how, names in told.items() if names]
    return f"Against {comparison.baseline}, {title} is {'; '.join(parts)}."


def shown(mean: float, sd: float, digits: int = 3) -> str:
    """ "0.612 ± 0.004", or the mean alone where there is no deviation."""
    return f"{mean:.{digits}f}" if np.isnan(sd) else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
