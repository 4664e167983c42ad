"""The robustness card: scores of the same images under perturbations of growing strength."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from fer_lightning.inference.explain.perturbations import PERTURBATIONS, Perturbation, perturbed
from fer_lightning.inference.predictor import Predictor
from fer_lightning.metrics.scores import METRICS
from fer_lightning.runs.results import sums_of

SCORES = {metric.name: metric for metric in METRICS if metric.name in ("accuracy", "f1_macro")}

TOLERATED = 0.02
"""Loss of accuracy below which a level counts as withstood."""

NAMED = 3
"""Perturbations that are named as the most harmful."""


def measure(
    predictor: Predictor,
    faces: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Scores of faces under each perturbation.

    Args:
        predictor: of the faces.
        faces: uint8 (N, H, W).
        labels: int64 (N,), all known.
        perturbations: what is done to the faces.
        report: is given a line after each perturbation.

    Returns:
        A row per perturbation and level, the neutral one included, with the columns perturbation, level, images,
        accuracy, f1_macro, change (of the accuracy from that of the faces as they are), change_low and change_high (its
        95 % interval, by a normal approximation over the same images).
    """
    start = time.monotonic()
    base = predictor.logits(faces)
    rows: list[dict[str, object]] = []
    for i, perturbation in enumerate(perturbations, start=1):
        of_levels = {perturbation.neutral: base} if perturbation.neutral is not None else {}
        for level in perturbation.levels:
            of_levels[level] = predictor.logits(perturbed(faces, perturbation, level))
        mine = [_row(perturbation.name, level, of_levels[level], base, labels) for level in sorted(of_levels)]
        rows += mine
        left = (time.monotonic() - start) / i * (len(perturbations) - i)
        worst = min(mine, key=lambda row: row["accuracy"])
        report(
            f"robustness {i} of {len(perturbations)}: {perturbation.title}, accuracy down to "
            f"{worst['accuracy']:.3f} at {number(worst['level'])}" + (f"; about {left:.0f} s left" if left >= 1 else "")
        )
    return pd.DataFrame(rows)


def _row(name: str, level: float, logits: Tensor, base: Tensor, labels: NDArray[np.int64]) -> dict[str, object]:
    sums = sums_of(logits, labels)
    hits, before = (one.argmax(1).numpy() == labels for one in (logits, base))
    change = hits.astype(np.float64) - before
    error = 1.96 * float(change.std()) / math.sqrt(len(labels))
    return {
        "perturbation": name,
        "level": float(level),
        "images": len(labels),
        **{key: float(metric.compute(sums)) for key, metric in SCORES.items()},
        "change": float(change.mean()),
        "change_low": float(change.mean()) - error,
        "change_high": float(change.mean()) + error,
    }


def undisturbed(table: pd.DataFrame) -> float:
    """The accuracy of the faces as they are, from a table of `measure`."""
    return float((table["accuracy"] - table["change"]).iloc[0])


def summary(table: pd.DataFrame, perturbations: Sequence[Perturbation] = PERTURBATIONS) -> pd.DataFrame:
    """Per perturbation its worst level and the levels that are withstood, the most harmful perturbation first.

    Returns:
        Columns title, worst (level), accuracy, f1_macro, change, change_low, change_high (at the worst level), and low
        and high, the range of levels around the neutral one, or from the highest level down where there is none,
        within which the accuracy falls by less than `TOLERATED`; nan where it does at no level.
    """
    rows = []
    for perturbation in perturbations:
        mine = table[table["perturbation"] == perturbation.name].sort_values("level")
        worst = mine.loc[mine["change"].idxmin()]
        levels, kept = mine["level"].to_numpy(), (mine["change"] > -TOLERATED).to_numpy()
        origin = len(levels) - 1 if perturbation.neutral is None else int(np.searchsorted(levels, perturbation.neutral))
        low = high = origin
        while low > 0 and kept[low - 1]:
            low -= 1
        while high < len(levels) - 1 and kept[high + 1]:
            high += 1
        within = (levels[low], levels[high]) if kept[origin] else (np.nan, np.nan)
        values = [worst[name] for name in ("level", "accuracy", "f1_macro", "change", "change_low", "change_high")]
        rows.append((perturbation.title, *values, *within))
    columns = ["title", "worst", "accuracy", "f1_macro", "change", "change_low", "change_high", "low", "high"]
    return pd.DataFrame(rows, columns=columns).sort_values("change", kind="stable", ignore_index=True)


def sentences(table: pd.DataFrame, perturbations: Sequence[Perturbation] = PERTURBATIONS) -> list[str]:
    """What hurts most and what is withstood, in numbers."""
    found = summary(table, perturbations)
    units = {perturbation.title: perturbation.unit for perturbation in perturbations}
    result = [f"As they are, {undisturbed(table):.1%} of {table['images'].iloc[0]:,} images are recognised."]
    harmful = [
        f"{row.title} at {number(row.worst)} ({units[row.title]}), {points(row.change)} points "
        f"({points(row.change_low)} to {points(row.change_high)})"
        for row in found.itertuples()
        if row.change < 0
    ]
    if harmful:
        result.append(f"What hurts most, each at its worst level: {'; '.join(harmful[:NAMED])}.")
    withstood = [row.title for row in found.itertuples() if row.change > -TOLERATED]
    if withstood:
        result.append(f"No level tried costs {100 * TOLERATED:g} points or more by: {', '.join(withstood)}.")
    return result


def points(share: float) -> str:
    """A difference in accuracy in points, with its sign."""
    return number(100 * share + 0.0, "+.1f")


def number(value: float, form: str = "g") -> str:
    """A number for people, with a minus sign instead of a hyphen."""
    return f"{value:{form}}".replace("-", "−")
