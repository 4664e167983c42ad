"""One page that shows a whole run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fer_lightning.report import html
from fer_lightning.report.tables import SUMMARY_ROWS

SCORES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1_macro": "Macro F1",
    "f1_weighted": "Weighted F1",
    "precision_macro": "Macro precision",
    "recall_macro": "Macro recall",
    "ece": "Calibration error (ECE)",
    "loss": "Loss (cross-entropy)",
}

SETS = {"test": "All test images", "test/clean": "Clean test images", "val": "Validation, best epoch"}
"""Prefix of the metrics of each set of images, and its name."""

CONFUSIONS = 6
"""How many of the most frequent confusions are listed."""


@dataclass(frozen=True)
class Face:
    """An image of a gallery.

    Attributes:
        image: uint8 (H, W), grey.
        label: name of the true class.
        prediction: name of the predicted class.
        confidence: probability of the predicted class.
        id: where the image comes from.
    """

    image: NDArray[np.uint8]
    label: str
    prediction: str
    confidence: float
    id: str


def render(
    *,
    about: Mapping[str, str],
    metrics: Mapping[str, float | str],
    report: pd.DataFrame | None = None,
    confusion: pd.DataFrame | None = None,
    figures: Mapping[str, bytes] | None = None,
    mistakes: Sequence[Face] = (),
    examples: Sequence[Face] = (),
    config_yaml: str = "",
    files: Sequence[str] = (),
) -> str:
    """The page as HTML; a part that is not given, or a metric that is missing, is left out.

    Args:
        about: what the run was, in the order to show it. "name" is the title; every other key is a label.
        metrics: what metrics.json holds.
        report: from `tables.classification_report`.
        confusion: from `tables.confusion_matrix`.
        figures: PNG bytes by name: confusion_matrix, curves, class_counts, reliability.
        mistakes: faces that were predicted wrongly, in the order to show them.
        examples: faces that were predicted rightly, those of one class next to each other.
        config_yaml: the resolved config.
        files: names of the files next to the page, to link to.
    """
    plots = figures or {}
    name = about.get("name", "Run")
    sections = [
        html.section("Results", _headline(metrics), _comparison(metrics)),
        html.section("Per class", _per_class(report)),
        html.section("Confusion matrix", html.plot(plots, "confusion_matrix"), _confusions(confusion)),
        html.section("Training", html.plot(plots, "curves")),
        html.section("Training images per class", html.plot(plots, "class_counts")),
        html.section("Calibration", html.plot(plots, "reliability")),
        html.section("Most confident mistakes", _gallery(mistakes)),
        html.section("Most confident correct predictions", _galleries(examples)),
        html.section("Configuration", _config(config_yaml)),
    ]
    return html.document(name, "fer-lightning run report", _facts(about, metrics), sections, files)


def _facts(about: Mapping[str, str], metrics: Mapping[str, float | str]) -> str:
    facts = {label: value for label, value in about.items() if label != "name"}
    if (seconds := _number(metrics, "train/seconds")) is not None:
        facts.setdefault("training time", _duration(seconds))
    if (speed := _number(metrics, "train/images_per_second")) is not None:
        facts.setdefault("training speed", f"{speed:,.0f} images/s")
    items = (f"<div><dt>{escape(k[:1].upper() + k[1:])}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="card facts">{"".join(items)}</dl>' if facts else ""


def _headline(metrics: Mapping[str, float | str]) -> str:
    cards = []
    for key in ("accuracy", "balanced_accuracy", "f1_macro", "ece"):
        if (value := _number(metrics, f"test/{key}")) is not None:
            interval = _interval(metrics, f"test/{key}")
            note = f"<span>95 % interval {interval}</span>" if interval else ""
            cards.append(f'<div class="card"><span>{SCORES[key]}</span><b>{value:.3f}</b>{note}</div>')
    return f'<div class="heads">{"".join(cards)}</div>' if cards else ""


def _comparison(metrics: Mapping[str, float | str]) -> str:
    sets = {prefix: title for prefix, title in SETS.items() if any(f"{prefix}/{key}" in metrics for key in SCORES)}
    if not sets:
        return ""
    rows = [["Images", *(_images(metrics, prefix) for prefix in sets)]]
    for key, title in SCORES.items():
        cells = []
        for prefix in sets:
            value = _number(metrics, f"{prefix}/{key}")
            interval = _interval(metrics, f"{prefix}/{key}")
            cells.append("" if value is None else f"{value:.3f}" + (f" ({interval})" if interval else ""))
        rows.append([title, *cells])
    body = "".join(html.row(cells) for cells in rows if any(cells[1:]))
    seen = "shows the same photograph" if metrics.get("data/twins") == "near" else "has the same pixels"
    note = f"Clean: no image of the training data {seen}." if "test/clean" in sets else ""
    return html.table(["Score", *sets.values()], body, note=note)


def _per_class(report: pd.DataFrame | None) -> str:
    if report is None:
        return ""
    rows = ""
    first_summary = len(report) - len(SUMMARY_ROWS)
    for i, (name, *values, support) in enumerate(report.itertuples(index=False)):
        cells = "".join(
            "<td></td>" if math.isnan(value) else f'<td class="bar" style="--share: {value:.3f}">{value:.3f}</td>'
            for value in values
        )
        kind = "" if i < first_summary else ' class="sum first"' if i == first_summary else ' class="sum"'
        rows += f'<tr{kind}><th scope="row">{escape(name)}</th>{cells}<td>{support:,}</td></tr>\n'
    return html.table(["Class", "Precision", "Recall", "F1", "Support"], rows)


def _confusions(confusion: pd.DataFrame | None) -> str:
    if confusion is None:
        return ""
    counts = confusion.to_numpy()
    support = counts.sum(axis=1)
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    rows = ""
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]:
        true, predicted = divmod(int(cell), len(counts))
        if count := wrong[true, predicted]:
            pair = [str(confusion.index[true]), str(confusion.columns[predicted])]
            rows += html.row([*pair, f"{count:,}", f"{count / support[true]:.1%}"])
    header = ["True class", "Predicted as", "Images", "Share of the true class"]
    return html.table(header, rows, title="Most frequent confusions") if rows else ""


def _gallery(faces: Sequence[Face]) -> str:
    note = '<p class="note">The predicted class with its probability, and the label. Hover for the image.</p>'
    return f'<div class="card">{_tiles(faces)}{note}</div>' if faces else ""


def _galleries(faces: Sequence[Face]) -> str:
    groups = groupby(faces, key=lambda face: face.prediction)
    body = "".join(f"<h3>{escape(name)}</h3>{_tiles(group)}" for name, group in groups)
    return f'<div class="card">{body}</div>' if body else ""


def _tiles(faces: Iterable[Face]) -> str:
    tiles = []
    for face in faces:
        right = face.label == face.prediction
        guess = f'<span class="{"right" if right else "wrong"}">{escape(face.prediction)}</span> {face.confidence:.2f}'
        truth = "" if right else f"<br>labelled {escape(face.label)}"
        tiles.append(f"<figure>{html.picture(face.image, face.id)}<figcaption>{guess}{truth}</figcaption></figure>")
    return f'<div class="faces">{"".join(tiles)}</div>'


def _config(text: str) -> str:
    return (
        f'<details class="card"><summary>Resolved config</summary><pre>{escape(text)}</pre></details>' if text else ""
    )


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
