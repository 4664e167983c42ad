"""The page of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.metrics.scores import HEADLINES, METRICS
from fer_lightning.report import html
from fer_lightning.report.tables import SUMMARY_ROWS

SETS = {"test": "All test images", "test/clean": "Clean test images", "val": "Validation, best epoch"}
"""Prefix of the metrics of each set of images, and its title."""

CONFUSIONS = 6
"""How many of the most frequent confusions are listed."""


def render(
    *,
    about: Mapping[str, str],
    metrics: Mapping[str, float | str],
    report: pd.DataFrame | None = None,
    confusion: pd.DataFrame | None = None,
    figures: Mapping[str, bytes] | None = None,
    mistakes: Sequence[Mapping[str, Any]] = (),
    examples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    config_yaml: str = "",
    files: Sequence[str] = (),
) -> str:
    """The page as HTML, without the parts and metrics that are missing.

    Args:
        about: properties of the run, in the order in which they are shown. "name" is the title.
        metrics: content of metrics.json.
        report: from `tables.classification_report`.
        confusion: from `tables.confusion_matrix`.
        figures: PNG bytes by name: confusion_matrix, curves, class_counts, reliability.
        mistakes: wrongly predicted faces: image, uint8 (H, W), label, prediction, confidence and id.
        examples: correctly predicted faces, the same, by class.
        config_yaml: the resolved config.
        files: names of the files next to the page, to link to.
    """
    sets = [p for p in SETS if any(f"{p}/{metric.name}" in metrics for metric in METRICS if metric.title)]
    same = "shows the same photograph" if metrics.get("data/twins") == "near" else "has the same pixels"
    return html.render(
        "run.html",
        about.get("name", "Run"),
        files,
        kind="run report",
        facts=_facts(about, metrics),
        headlines=_headlines(metrics),
        sets=[SETS[prefix] for prefix in sets],
        scores=_scores(metrics, sets),
        clean_note=f"Clean: no image of the training data {same}." if "test/clean" in sets else "",
        report=None if report is None else list(report.itertuples(index=False, name=None)),
        summary_rows=len(SUMMARY_ROWS),
        confusions=None if confusion is None else _confusions(confusion),
        figures=figures or {},
        mistakes=mistakes,
        examples=examples,
        config_yaml=config_yaml,
    )


def _facts(about: Mapping[str, str], metrics: Mapping[str, float | str]) -> dict[str, str]:
    facts = {label: value for label, value in about.items() if label != "name"}
    if (seconds := _number(metrics, "train/seconds")) is not None:
        facts.setdefault("training time", _duration(seconds))
    if (speed := _number(metrics, "train/images_per_second")) is not None:
        facts.setdefault("training speed", f"{speed:,.0f} images/s")
    return facts


def _headlines(metrics: Mapping[str, float | str]) -> list[tuple[str, str, str]]:
    """Title, value and interval of each headline metric."""
    keys = {metric.title: f"test/{metric.name}" for metric in HEADLINES}
    values = {title: _number(metrics, key) for title, key in keys.items()}
    return [
        (title, f"{value:.3f}", _interval(metrics, keys[title])) for title, value in values.items() if value is not None
    ]


def _scores(metrics: Mapping[str, float | str], sets: Sequence[str]) -> list[list[str]]:
    """A row for each metric, a column for each set of images."""
    rows = [["Images", *(_images(metrics, prefix) for prefix in sets)]]
    for metric in METRICS:
        cells = []
        for key in (f"{prefix}/{metric.name}" for prefix in sets):
            value, interval = _number(metrics, key), _interval(metrics, key)
            cells.append("" if value is None else f"{value:.3f}" + (f" ({interval})" if interval else ""))
        if metric.title:
            rows.append([metric.title, *cells])
    return [row for row in rows if any(row[1:])]


def _confusions(confusion: pd.DataFrame) -> list[list[str]]:
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


def _number(metrics: Mapping[str, float | str], key: str) -> float | None:
    value = metrics.get(key)
    return None if value is None or isinstance(value, str) or not math.isfinite(value) else float(value)


def _interval(metrics: Mapping[str, float | str], key: str) -> str:
    low, high = _number(metrics, f"{key}_low"), _number(metrics, f"{key}_high")
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _images(metrics: Mapping[str, float | str], prefix: str) -> str:
    supports = [_number(metrics, key) or 0 for key in metrics if key.startswith(f"{prefix}/support/")]
    return f"{sum(supports):,.0f}" if supports else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
