"""The robustness card: scores of the same images under perturbations of growing strength."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
"""Loss of accuracy below which a level counts as tolerated."""

NAMED = 3
"""Perturbations that are named as the most harmful."""


def measure(
    predictor: Predictor,
    faces: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Scores of faces under each perturbation.

    Args:
        predictor: of the faces.
        faces: uint8 (N, H, W).
        labels: int64 (N,), all known.
        report: is given a line after each perturbation.

    Returns:
        A row per perturbation and level, the neutral one included, with the columns perturbation, level, images,
        accuracy, f1_macro, change (of the accuracy from that of the faces as they are), change_low and change_high (its
        95 % interval, by a normal approximation over the same images).
    """
    start = time.monotonic()
    base = predictor.logits(faces)
    rows: list[dict[str, Any]] = []
    for i, perturbation in enumerate(PERTURBATIONS, start=1):
        of_levels = {perturbation.neutral: base} if perturbation.neutral is not None else {}
        for level in perturbation.levels:
            of_levels[level] = predictor.logits(perturbed(faces, perturbation, level))
        mine = [_row(perturbation.name, level, of_levels[level], base, labels) for level in sorted(of_levels)]
        rows += mine
        left = (time.monotonic() - start) / i * (len(PERTURBATIONS) - i)
        worst = min(mine, key=lambda row: row["accuracy"])
        report(
            f"robustness {i} of {len(PERTURBATIONS)}: {perturbation.title}, accuracy down to "
            f"{worst['accuracy']:.3f} at {number(worst['level'])}" + (f"; about {left:.0f} s left" if left >= 1 else "")
        )
    return pd.DataFrame(rows)


def _row(name: str, level: float, logits: Tensor, base: Tensor, labels: NDArray[np.int64]) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Outcome:
    """What a perturbation does.

    Attributes:
        perturbation: the perturbation.
        worst: the level of the lowest accuracy.
        accuracy: at that level.
        f1_macro: at that level.
        change: of the accuracy at that level.
        interval: 95 % interval of the change.
        tolerated: lowest and highest of the levels around the neutral one, or from the highest level down where there
            is none, within which the accuracy falls by less than `TOLERATED`; None if only the neutral one is.
    """

    perturbation: Perturbation
    worst: float
    accuracy: float
    f1_macro: float
    change: float
    interval: tuple[float, float]
    tolerated: tuple[float, float] | None


def summary(table: pd.DataFrame, perturbations: Sequence[Perturbation] = PERTURBATIONS) -> list[Outcome]:
    """What each perturbation does according to a table of `measure`, the most harmful one first."""
    return sorted((_outcome(table, perturbation) for perturbation in perturbations), key=lambda found: found.change)


def _outcome(table: pd.DataFrame, perturbation: Perturbation) -> Outcome:
    mine = table[table["perturbation"] == perturbation.name].sort_values("level")
    levels, changes = (mine[name].to_numpy(dtype=np.float64) for name in ("level", "change"))
    worst = int(changes.argmin())
    low = high = len(levels) - 1 if perturbation.neutral is None else int(np.searchsorted(levels, perturbation.neutral))
    kept = changes > -TOLERATED
    while low > 0 and kept[low] and kept[low - 1]:
        low -= 1
    while high < len(levels) - 1 and kept[high + 1]:
        high += 1
    some = low < high or (perturbation.neutral is None and bool(kept[high]))
    accuracy, f1_macro, change, *interval = (
        float(mine[name].iloc[worst]) for name in ("accuracy", "f1_macro", "change", "change_low", "change_high")
    )
    return Outcome(
        perturbation,
        worst=float(levels[worst]),
        accuracy=accuracy,
        f1_macro=f1_macro,
        change=change,
        interval=(interval[0], interval[1]),
        tolerated=(float(levels[low]), float(levels[high])) if some else None,
    )


def sentences(table: pd.DataFrame, perturbations: Sequence[Perturbation] = PERTURBATIONS) -> list[str]:
    """What hurts most and what is tolerated, in numbers."""
    found = summary(table, perturbations)
    result = [f"Accuracy on {table['images'].iloc[0]:,} undisturbed images: {undisturbed(table):.3f}."]
    harmful = [
        f"{one.perturbation.title} at {number(one.worst)} ({one.perturbation.unit}), {points(one.change)} points "
        f"({points(one.interval[0])} to {points(one.interval[1])})"
        for one in found
        if one.change < 0
    ]
    if harmful:
        result.append(f"What hurts most, each at its worst level: {'; '.join(harmful[:NAMED])}.")
    tolerated = [one.perturbation.title for one in found if one.change > -TOLERATED]
    if tolerated:
        result.append(f"No level tried costs {100 * TOLERATED:g} points or more by: {', '.join(tolerated)}.")
    return result


def points(share: float) -> str:
    """A difference in accuracy in points, with its sign."""
    return number(100 * share + 0.0, "+.1f")


def number(value: float, form: str = "g") -> str:
    """A number for people, with a minus sign instead of a hyphen."""
    return f"{value:{form}}".replace("-", "−")
