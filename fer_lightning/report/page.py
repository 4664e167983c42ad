"""One page that shows a whole run, and opens anywhere: no script, no network, figures and faces are inside it."""

from __future__ import annotations

import math
import struct
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import groupby

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

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

PLOT_SCALE = 0.52
"""CSS pixels for each pixel of a figure, so that text has the same size in all of them."""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --soft: #5d6670; --line: #e2e5e9; --back: #f6f7f9; --card: #fff;
  --accent: #0072b2; --bar: #0072b222; --wrong: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa4af; --line: #2c3239; --back: #101317; --card: #171b20;
    --accent: #56b4e9; --bar: #56b4e92e; --wrong: #f0914d; }
  .plot { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main, header, footer { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 44px; }
h1 { font-size: 30px; line-height: 1.2; margin: 2px 0 18px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 13px; margin: 18px 0 6px; color: var(--soft); }
h3:first-child { margin-top: 0; }
p { margin: 8px 0; max-width: 76ch; }
.kind { color: var(--accent); font-weight: 600; font-size: 13px; margin: 0; }
.note { color: var(--soft); font-size: 13.5px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px; }
.card + .card { margin-top: 14px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px 24px; margin: 0; }
dt { color: var(--soft); font-size: 12.5px; }
dd { margin: 0; overflow-wrap: anywhere; }
.heads { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin-bottom: 14px; }
.heads .card { margin: 0; }
.heads b { display: block; font-size: 32px; line-height: 1.25; font-weight: 650; letter-spacing: -.02em; }
.heads span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; table-layout: fixed; width: 100%; min-width: 560px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 13px; font-weight: 600; padding-bottom: 6px; }
th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 2px; }
th:first-child { text-align: left; padding-left: 2px; font-weight: 500; overflow-wrap: anywhere; }
thead th, thead th:first-child { color: var(--soft); font-weight: 500; font-size: 13px; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
tr.sum > * { font-weight: 600; }
tr.first > * { border-top: 2px solid var(--line); }
td.bar { background: linear-gradient(var(--bar), var(--bar)) no-repeat 12px 6px /
  calc((100% - 80px) * var(--share)) calc(100% - 12px); }
.plot { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.faces { display: grid; grid-template-columns: repeat(auto-fill, minmax(108px, 1fr)); gap: 14px 12px; }
.faces figure { margin: 0; font-size: 12.5px; line-height: 1.4; overflow-wrap: anywhere; }
.faces img { width: 100%; aspect-ratio: 1; display: block; border-radius: 6px; margin-bottom: 5px; }
.faces .pair { grid-column: span 2; display: grid; grid-template-columns: 1fr 1fr; gap: 0 4px; }
.faces .pair figcaption { grid-column: span 2; display: inherit; grid-template-columns: inherit; gap: inherit; }
.faces .wrong { color: var(--wrong); font-weight: 600; }
.faces .right { color: var(--accent); font-weight: 600; }
pre { font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-x: auto; margin: 12px 0 0; }
summary { cursor: pointer; font-weight: 600; }
a { color: var(--accent); }
footer { color: var(--soft); font-size: 13px; padding-top: 28px; padding-bottom: 48px; }
@media (max-width: 640px) { thead th:first-child { width: 132px; } }
@media print {
  body { background: #fff; font-size: 9.5pt; }
  .heads { grid-template-columns: repeat(4, 1fr); }
  .facts { grid-template-columns: repeat(4, 1fr); }
  .faces { grid-template-columns: repeat(8, 1fr); gap: 8px; }
  .faces figure { font-size: 7.5pt; }
  .card { border: 0; padding: 0; }
  .card, .faces figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  td.bar { print-color-adjust: exact; }
}
"""

# The page may load nothing at all, whatever a class name or a config value managed to say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
        section("Results", _headline(metrics), _comparison(metrics)),
        section("Per class", _per_class(report)),
        section("Confusion matrix", plot(plots, "confusion_matrix"), _confusions(confusion)),
        section("Training", plot(plots, "curves")),
        section("Training images per class", plot(plots, "class_counts")),
        section("Calibration", plot(plots, "reliability")),
        section("Most confident mistakes", _gallery(mistakes)),
        section("Most confident correct predictions", _galleries(examples)),
        section("Configuration", _config(config_yaml)),
    ]
    return document(name, "fer-lightning run report", _facts(about, metrics), sections, files)


def document(title: str, kind: str, head: str, sections: Sequence[str], files: Sequence[str] = ()) -> str:
    """A page of its own.

    Args:
        title: its heading.
        kind: what sort of page it is.
        head: HTML below the heading.
        sections: HTML of the parts.
        files: names of the files next to the page, to link to.
    """
    links = ", ".join(f'<a href="{escape(file)}">{escape(file)}</a>' for file in files)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}, fer-lightning</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kind">{escape(kind)}</p>
<h1>{escape(title)}</h1>
{head}
</header>
<main>
{"".join(sections)}
</main>
<footer>{f"Files of this report: {links}" if links else ""}</footer>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A part of a page, of HTML that is not empty; nothing where all is."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


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
    body = "".join(row(cells) for cells in rows if any(cells[1:]))
    seen = "shows the same photograph" if metrics.get("data/twins") == "near" else "has the same pixels"
    note = f"Clean: no image of the training data {seen}." if "test/clean" in sets else ""
    return table(["Score", *sets.values()], body, note=note)


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
    return table(["Class", "Precision", "Recall", "F1", "Support"], rows)


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
            rows += row([*pair, f"{count:,}", f"{count / support[true]:.1%}"])
    header = ["True class", "Predicted as", "Images", "Share of the true class"]
    return table(header, rows, title="Most frequent confusions") if rows else ""


def plot(figures: Mapping[str, bytes], name: str) -> str:
    """A figure, PNG, in a card; nothing where there is none of that name."""
    if name not in figures:
        return ""
    png = figures[name]
    width, height = (round(pixels * PLOT_SCALE) for pixels in struct.unpack(">II", png[16:24]))  # of the PNG header
    size = f'width="{width}" height="{height}"'
    return f'<div class="card"><img class="plot" alt="{name.replace("_", " ")}" {size} src="{_data_uri(png)}"></div>'


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
        tiles.append(f"<figure>{picture(face.image, face.id)}<figcaption>{guess}{truth}</figcaption></figure>")
    return f'<div class="faces">{"".join(tiles)}</div>'


def picture(image: NDArray[np.uint8], title: str) -> str:
    """An image, uint8 (H, W), that tells where it comes from when one points at it."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return f'<img alt="" title="{escape(title)}" src="{_data_uri(buffer.getvalue())}">'


def _config(text: str) -> str:
    return (
        f'<details class="card"><summary>Resolved config</summary><pre>{escape(text)}</pre></details>' if text else ""
    )


def table(header: Sequence[str], rows: str, title: str = "", note: str = "") -> str:
    """A table in a card, of rows that `row` made."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    after = f'<p class="note">{escape(note)}</p>' if note else ""
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    body = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"
    return f'<div class="card"><div class="scroll">{body}</div>{after}</div>'


def data_frame(frame: pd.DataFrame, text: str = "") -> str:
    """A data frame as a table in a card, with a note of text."""
    rows = "".join(row(cells) for cells in frame.astype(str).to_numpy().tolist())
    return table(list(frame.columns), rows, note=text)


def note(text: str) -> str:
    """A remark, of text."""
    return f'<p class="note">{escape(text)}</p>'


def row(cells: Sequence[str]) -> str:
    """A row of a table, of text."""
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{escape(cells[0])}</th>{rest}</tr>\n'


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


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
