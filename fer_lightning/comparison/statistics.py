"""Scores of settings with their spread over seeds, and which differences between settings are significant.

Two things vary: the sample of test images, and the result of training with a seed. Intervals come from resampling both;
tests are paired, since all settings are scored on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from fer_lightning.comparison.collect import FinishedRun, Setting
from fer_lightning.comparison.resampling import LEVEL, Floats, resampled, simultaneous
from fer_lightning.errors import UserError
from fer_lightning.metrics.scores import CLASS_HEADLINES, HEADLINES, scores
from fer_lightning.metrics.sums import Sums, calibration_bins, confusion


@dataclass(frozen=True)
class Comparison:
    """The results of comparing settings.

    Attributes:
        settings: as compared.
        baseline: name of the setting that the others are compared with.
        runs: a row for each run: setting, seed, folder, and every score.
        table: a row for each setting, in their order: setting, seeds, and of every score its mean and, as `<score>_sd`,
            its standard deviation over seeds (n − 1; missing for one seed).
        intervals: a row for each setting: `<score>_low` and `<score>_high` of the tested scores, individual 95 %
            confidence intervals.
        pairs: a row for each pair of settings (a, b): for each tested score `<score>_difference` (a − b), its
            simultaneous 95 % confidence interval over all pairs and scores `<score>_low`, `<score>_high`, and whether
            that excludes zero, `<score>_differs`; McNemar's p, `mcnemar_p`, and with Holm's correction,
            `mcnemar_p_holm`.
    """

    settings: tuple[Setting, ...]
    baseline: str
    runs: pd.DataFrame
    table: pd.DataFrame
    intervals: pd.DataFrame
    pairs: pd.DataFrame


def compare(settings: Sequence[Setting], *, baseline: str | None = None, resamples: int = 4000) -> Comparison:
    """Score, resample and test.

    Args:
        settings: scored on the same images.
        baseline: name of the setting to compare the others with; by default `none` or `common`, or the first.
        resamples: number of bootstrap resamples of test images and seeds.

    Raises:
        UserError: no setting has the name of the baseline.
    """
    names = [setting.name for setting in settings]
    if baseline is None:
        baseline = next((name for name in names if name.partition(",")[0] in ("none", "common")), names[0])
    elif baseline not in names:
        raise UserError(f"--baseline {baseline}: no such setting; choose one of {'; '.join(names)}")
    runs = pd.DataFrame(
        [
            {"setting": setting.name, "seed": run.seed, "folder": str(run.folder), **_headlines(run)}
            for setting in settings
            for run in setting.runs
        ]
    )
    groups = runs.drop(columns=["seed", "folder"]).groupby("setting", sort=False)
    mean, sd = groups.mean(), groups.std().add_suffix("_sd")
    columns = [name for score in mean.columns for name in (score, f"{score}_sd")]
    table = pd.concat([groups.size().rename("seeds"), mean, sd], axis=1)[["seeds", *columns]].reset_index()

    drawn = resampled(settings, resamples)
    tail = 100 * (1 - LEVEL) / 2
    intervals = pd.DataFrame({"setting": table["setting"]})
    for score, values in drawn.items():
        intervals[f"{score}_low"], intervals[f"{score}_high"] = np.percentile(values, [tail, 100 - tail], axis=1)
    return Comparison(tuple(settings), baseline, runs, table, intervals, _pairs(settings, table, drawn))


def _headlines(run: FinishedRun) -> dict[str, float]:
    sums = Sums(run.confusion, calibration_bins(run.probabilities, run.labels))
    return scores(sums, run.classes, HEADLINES, CLASS_HEADLINES)


def _pairs(settings: Sequence[Setting], table: pd.DataFrame, drawn: dict[str, Floats]) -> pd.DataFrame:
    from statsmodels.stats.multitest import multipletests

    if len(settings) < 2:
        return pd.DataFrame()
    first, second = np.triu_indices(len(settings), 1)
    means, names = table[list(drawn)].to_numpy().T, table["setting"].to_numpy()
    observed = means[:, first] - means[:, second]
    # For each score and setting its differences from the settings after it, in the order of `first` and `second`.
    draws = (values[i] - values[i + 1 :] for values in drawn.values() for i in range(len(settings) - 1))
    low, high = (side.reshape(observed.shape) for side in simultaneous(observed.ravel(), draws))
    pairs = pd.DataFrame({"a": names[first], "b": names[second]})
    for k, score in enumerate(drawn):
        pairs[f"{score}_difference"], pairs[f"{score}_low"], pairs[f"{score}_high"] = observed[k], low[k], high[k]
        pairs[f"{score}_differs"] = (low[k] > 0) | (high[k] < 0)
    pairs["mcnemar_p"] = [mcnemar_p(a, b) for a, b in combinations(settings, 2)]
    pairs["mcnemar_p_holm"] = multipletests(pairs["mcnemar_p"], method="holm")[1]
    return pairs


def mcnemar_p(a: Setting, b: Setting) -> float:
    """McNemar's exact test of equal accuracy on the same images (Dietterich 1998).

    It tests whether these trained networks differ, and ignores the variation between seeds. With several seeds, runs of
    equal seeds are paired, or runs of equal rank if no seeds are equal; twice the median of their p-values is a valid
    p-value under any dependence between them (Rüger 1978; Vovk & Wang 2020, arXiv:1212.4966).
    """
    from statsmodels.stats.contingency_tables import mcnemar

    of_b = {run.part: run for run in b.runs}
    matched = [(run, of_b[run.part]) for run in a.runs if run.part in of_b] or list(zip(a.runs, b.runs, strict=False))
    p_values = []
    for pair in matched:
        one, other = (run.guesses == run.labels for run in pair)
        table = confusion(one, other, 2)  # of "correct" for the one and for the other
        p_values.append(float(mcnemar(table, exact=True).pvalue))
    return min(1.0, 2 * float(np.median(p_values))) if len(p_values) > 1 else p_values[0]


def mean_shares(setting: Setting) -> Floats:
    """The confusion matrix as shares of each true class, mean over seeds: float (C, C)."""
    matrices = [run.confusion for run in setting.runs]
    mean: Floats = np.mean([matrix / np.maximum(matrix.sum(1, keepdims=True), 1) for matrix in matrices], axis=0)
    return mean


def mean_with_sd(mean: float, sd: float, digits: int = 3) -> str:
    """ "0.612 ± 0.004", or the mean alone if there is no standard deviation."""
    return f"{mean:.{digits}f}" if np.isnan(sd) else f"{mean:.{digits}f} ± {sd:.{digits}f}"
