"""Results of a run as its page shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.metrics.calibration import PREFIX
from fer_lightning.metrics.scores import HEADLINES, METRICS

SETS = {"test": "All test images", "test/clean": "Clean test images", "val": "Validation, best epoch"}
"""Prefix of the metrics of each set of images, and its title."""

CONFUSIONS = 6
"""How many of the most frequent confusions are listed."""


def results(about: Mapping[str, str], metrics: Mapping[str, float | str]) -> dict[str, Any]:
    """What run.html shows of metrics.json, without the metrics that are missing or not finite.

    Args:
        about: properties of the run, in the order in which they are shown.
        metrics: content of metrics.json.
    """
    numbers = {key: value for key, value in metrics.items() if not isinstance(value, str) and math.isfinite(value)}
    sets = [prefix for prefix in SETS if any(f"{prefix}/{metric.name}" in numbers for metric in METRICS)]
    facts = {label: value for label, value in about.items() if label != "name"}
    if "train/seconds" in numbers:
        facts["training time"] = _duration(numbers["train/seconds"])
    if "train/images_per_second" in numbers:
        facts["training speed"] = f"{numbers['train/images_per_second']:,.0f} images/s"
    facts |= _calibration(numbers)
    headlines = [
        (metric.title, f"{numbers[key]:.3f}", _interval(numbers, key))
        for metric in HEADLINES
        if (key := f"test/{metric.name}") in numbers
    ]
    same = "shows the same photograph" if metrics.get("data/twins") == "near" else "has the same pixels"
    return {
        "facts": facts,
        "headlines": headlines,
        "sets": [SETS[prefix] for prefix in sets],
        "scores": _scores(numbers, sets),
        "clean_note": f"Clean: no image of the training data {same}." if "test/clean" in sets else "",
    }


def _calibration(numbers: Mapping[str, float]) -> dict[str, str]:
    """What the temperature and the threshold are worth on the test images."""
    before, after = numbers.get("test/ece"), numbers.get("test/ece_calibrated")
    if before is None or after is None:
        return {}
    facts = {"calibration": f"temperature {numbers[f'{PREFIX}temperature']:.2f}: ECE {before:.3f} to {after:.3f}"}
    if numbers[f"{PREFIX}threshold"] <= 1:
        facts["unsure"] = (
            f"confidence below {numbers[f'{PREFIX}threshold']:.2f}; of the other {numbers['test/coverage']:.0%}, "
            f"{numbers['test/accuracy_sure']:.0%} are right"
        )
    else:
        facts["unsure"] = "every prediction, as none was right often enough on the validation images"
    return facts


def _scores(numbers: Mapping[str, float], sets: Sequence[str]) -> list[list[str]]:
    """A row for each metric, a column for each set of images."""
    images = [sum(n for key, n in numbers.items() if key.startswith(f"{prefix}/support/")) for prefix in sets]
    rows = [
        [metric.title, *(_cell(numbers, f"{prefix}/{metric.name}") for prefix in sets)]
        for metric in METRICS
        if metric.title
    ]
    rows = [["Images", *(f"{n:,.0f}" if n else "" for n in images)], *rows]
    return [row for row in rows if any(row[1:])]


def _cell(numbers: Mapping[str, float], key: str) -> str:
    if key not in numbers:
        return ""
    interval = _interval(numbers, key)
    return f"{numbers[key]:.3f} ({interval})" if interval else f"{numbers[key]:.3f}"


def _interval(numbers: Mapping[str, float], key: str) -> str:
    return f"{numbers[f'{key}_low']:.3f} to {numbers[f'{key}_high']:.3f}" if f"{key}_low" in numbers else ""


def confusions(confusion: pd.DataFrame) -> list[list[str]]:
    """The most frequent confusions: true class, predicted class, images, share of the true class."""
    counts = confusion.to_numpy()
    support = counts.sum(axis=1)
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    rows = []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]:
        true, predicted = divmod(int(cell), len(counts))
        if count := wrong[true, predicted]:
            pair = [str(confusion.index[true]), str(confusion.columns[predicted])]
            rows.append([*pair, f"{count:,}", f"{count / support[true]:.1%}"])
    return rows


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
