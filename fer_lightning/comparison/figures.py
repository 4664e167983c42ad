"""The figures of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from fer_lightning.comparison.resampling import Floats
from fer_lightning.comparison.statistics import Comparison, mean_shares
from fer_lightning.metrics.scores import Metric
from fer_lightning.report.style import BLUE, GREY, INK, short, styled

WIDTH = 34
"""Characters of a setting's name."""


@styled
def class_scores(table: pd.DataFrame, metric: Metric, classes: Sequence[str]) -> Figure:
    """A metric of each class for each setting, mean over seeds; the best of each class in bold.

    Args:
        table: `Comparison.table`.
        metric: one of `CLASS_METRICS`.
        classes: (C,), class names in label order.
    """
    values = table[[f"{metric.name}/{name}" for name in classes]].to_numpy()
    names = [short(str(name), WIDTH) for name in table["setting"]]
    longest = 0.075 * max(map(len, names))  # inches, about
    figure = Figure(figsize=(1.2 + longest + 0.8 * len(classes), 1.0 + 0.32 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        best = value == values[:, column].max() and len(names) > 1
        look: dict[str, Any] = {
            "color": "white" if value > 0.6 else INK,
            "fontweight": "bold" if best else "normal",
            "fontsize": 8.5,
        }
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", **look)
    axes.set_xticks(range(len(classes)), [short(name) for name in classes])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=metric.title, shrink=0.9).outline.set_visible(False)
    return figure


@styled
def accuracy_f1(comparison: Comparison) -> Figure:
    """Accuracy and macro-F1 of each setting with individual 95 % confidence intervals."""
    table, intervals = comparison.table, comparison.intervals
    height = max(4.4, 0.7 + 0.18 * len(table))  # inches: a line of the legend takes 0.18
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.add_subplot()
    x, y = table["accuracy"].to_numpy(), table["f1_macro"].to_numpy()
    errors = [
        np.abs(np.stack([v - intervals[f"{score}_low"], intervals[f"{score}_high"] - v]))
        for score, v in (("accuracy", x), ("f1_macro", y))
    ]
    axes.errorbar(x, y, errors[1], errors[0], fmt="none", ecolor=GREY, elinewidth=0.7, alpha=0.55, zorder=1)
    runs = comparison.runs
    axes.plot(runs["accuracy"], runs["f1_macro"], ".", color=BLUE, alpha=0.35, markersize=4, zorder=2)
    axes.plot(x, y, "o", color=BLUE, markersize=5, zorder=3)
    numbers = len(table) > 1
    if numbers:
        legend = "\n".join(f"{i + 1}  {short(str(name), WIDTH)}" for i, name in enumerate(table["setting"]))
        axes.annotate(legend, (1.02, 1), xycoords="axes fraction", va="top", fontsize=8.5, linespacing=1.5)
    axes.set(xlabel="Accuracy", ylabel="Macro-F1")
    axes.grid()
    _label_points(axes, x, y, [f"{i + 1}" for i in range(len(table))] if numbers else [str(table["setting"][0])])
    return figure


def _label_points(axes: Axes, x: Floats, y: Floats, texts: Sequence[str]) -> None:
    """Write each text beside its point, on the first side where it covers no other text or point."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout determines where the points are
    points = axes.transData.transform(np.stack([x, y], 1)) * 72 / figure.dpi
    height, marker = 8.0, 5.0
    taken = [Bbox.from_bounds(px - marker / 2, py - marker / 2, marker, marker) for px, py in points]
    for i, text in enumerate(texts):
        width = 5.5 * len(text)
        sides = [(4.0, 3.0), (-4.0 - width, 3.0), (4.0, -3.0 - height), (-4.0 - width, -3.0 - height)]
        px, py = points[i]
        boxes = [Bbox.from_bounds(px + dx, py + dy, width, height) for dx, dy in sides]
        k = next((k for k, box in enumerate(boxes) if not box.count_overlaps(taken)), 0)
        taken.append(boxes[k])
        axes.annotate(text, (x[i], y[i]), xytext=sides[k], textcoords="offset points", fontsize=8.5, zorder=4)


@styled
def confusion_differences(comparison: Comparison) -> Figure:
    """Confusion matrices as shares of each true class, mean over seeds, minus that of the baseline."""
    baseline = comparison.baseline
    classes = comparison.settings[0].runs[0].classes
    shares = {setting.name: mean_shares(setting) for setting in comparison.settings}
    others = [name for name in shares if name != baseline]
    assert others
    columns = min(4, len(others))
    rows = math.ceil(len(others) / columns)
    figure = Figure(figsize=(2.5 * columns + 0.9, 2.6 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    limit = max(0.01, max(float(np.abs(shares[name] - shares[baseline]).max()) for name in others))
    for axes in grid.flat[len(others) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, others, strict=False):
        difference = shares[name] - shares[baseline]
        image = axes.imshow(difference, cmap="RdBu", vmin=-limit, vmax=limit)
        for row, column in np.ndindex(*difference.shape):
            value = 100 * difference[row, column]
            if abs(value) >= 0.5:
                colour = "white" if abs(value) > 70 * limit else INK
                axes.text(column, row, f"{value:+.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_title(short(name, 24), fontsize=9)
        ticks = [short(name, 9) for name in classes]
        axes.set_xticks(range(len(classes)), ticks, rotation=90, fontsize=7.5)
        axes.set_yticks(range(len(classes)), ticks, fontsize=7.5)
        axes.tick_params(length=0, labelbottom=True)
    bar = figure.colorbar(image, ax=grid, shrink=0.7, label=f"Percentage points above {short(baseline, 24)}")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}")
    bar.outline.set_visible(False)
    figure.supxlabel("Predicted class", fontsize=9)
    figure.supylabel("True class", fontsize=9)
    return figure
