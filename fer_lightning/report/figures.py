"""The figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from fer_lightning.metrics.calibration import calibrated
from fer_lightning.metrics.scores import calibration_error
from fer_lightning.metrics.sums import Sums, calibration_bins
from fer_lightning.report.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, short, styled


@styled
def confusion_matrix(confusion: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Counts and shares of each true class; the colour is the share, so that rare classes are visible.

    Args:
        confusion: (C, C), rows are true classes, columns are predicted ones.
        classes: (C,), class names in label order.
    """
    n_classes = len(classes)
    support = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(support, 1)

    names = [short(name) for name in classes]
    longest = 0.085 * max(map(len, names))  # inches, about
    cell = float(np.clip(7.0 / n_classes, 0.5, 1.0))
    slanted = longest > cell
    width, height = (cell * n_classes + 1.8 + longest, cell * n_classes + 0.8 + slanted * 0.7 * longest)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(n_classes, n_classes):
        count, part = confusion[row, column], share[row, column]
        look: dict[str, Any] = {
            "xy": (column, row),
            "textcoords": "offset points",
            "ha": "center",
            "color": "white" if part > 0.68 else INK if count else GREY,
            "fontweight": "bold" if row == column else "normal",
            "in_layout": False,  # inside its cell; measuring hundreds of texts takes most of the time of the layout
        }
        if count:
            axes.annotate(f"{count:,}", xytext=(0, 1), va="bottom", fontsize=10 * cell**0.5, **look)
            axes.annotate(f"{part:.1%}", xytext=(0, -3 * cell), va="top", fontsize=7.5 * cell**0.5, **look)
        else:
            axes.annotate("0", xytext=(0, 0), va="center", fontsize=10 * cell**0.5, **look)

    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(n_classes), names, **slant)
    axes.set_yticks(range(n_classes), [f"{name} ({n:,})" for name, n in zip(names, support[:, 0], strict=True)])
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(1, n_classes) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, n_classes) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class (images)")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25, pad=0.02, format=PercentFormatter(xmax=1))
    bar.set_label("Share of the true class")
    bar.outline.set_visible(False)
    return figure


_PANELS = {  # axis label: {column: (name, colour, line style)}
    "Loss": {"train/loss": ("Training", BLUE, "-"), "val/loss": ("Validation", VERMILLION, "-")},
    "Accuracy, macro-F1": {
        "train/accuracy": ("Training accuracy", BLUE, "-"),
        "val/accuracy": ("Validation accuracy", VERMILLION, "-"),
        "val/f1_macro": ("Validation macro-F1", GREEN, "--"),
    },
    "Learning rate": {"lr": ("Learning rate", GREY, "-")},
}


@styled
def curves(history: pd.DataFrame, monitor: str = "", best_epoch: int | None = None) -> Figure:
    """Loss, scores and learning rate over the epochs, as far as they were logged.

    Args:
        history: metrics.csv: column epoch, and any of train/loss, val/loss, train/accuracy, val/accuracy,
            val/f1_macro, lr.
        monitor: the column by which the checkpoint was chosen.
        best_epoch: the epoch of the checkpoint, which is marked.
    """
    history = history.set_index("epoch").replace([np.inf, -np.inf], np.nan).dropna(axis="columns", how="all")
    panels = {
        label: {column: look for column, look in lines.items() if column in history} for label, lines in _PANELS.items()
    }
    panels = {label: lines for label, lines in panels.items() if lines}
    best = history[monitor].get(best_epoch) if monitor in history else None

    widths = [0.75 if "lr" in lines else 1 for lines in panels.values()]
    figure = Figure(figsize=(4 * sum(widths), 2.9), layout=ConstrainedLayoutEngine(wspace=0.05))
    grid = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for axes, (label, lines) in zip(grid, panels.items(), strict=True):
        for column, (name, colour, dash) in lines.items():
            values = history[column].dropna()
            marker = "o" if len(values) < 5 else None  # a line through one point is invisible
            axes.plot(values.index, values, label=name, color=colour, linestyle=dash, marker=marker, markersize=4)
        if best is not None:
            axes.axvline(best_epoch, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        if best is not None and monitor in lines:
            look = {"color": lines[monitor][1], "markeredgecolor": INK, "markersize": 6}
            axes.plot(best_epoch, best, "o", label=f"Best, {best:.3f} in epoch {best_epoch}", **look)
        axes.set(xlabel="Epoch", ylabel=label)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if len(history) == 1:
            axes.set(xlim=(history.index[0] - 1, history.index[0] + 1), xticks=history.index)
        if len(lines) > 1:
            axes.legend(loc="best")
    return figure


@styled
def class_counts(before: Mapping[str, int], after: Mapping[str, int]) -> Figure:
    """Images per class in the training split and, if different, in the training set of an epoch.

    The second panel stacks images kept and added, with the outline of images dropped. These are net changes: counts do
    not show whether a class both lost images and gained copies.

    Args:
        before: images of each class in the training split.
        after: images of each class in the training set of an epoch, after resampling.
    """
    classes = list(dict.fromkeys([*before, *after]))
    old, new = (np.array([counts.get(name, 0) for name in classes], dtype=np.int64) for counts in (before, after))
    changed = bool((old != new).any())

    figure = Figure(figsize=(9.0 if changed else 5.2, 0.34 * len(classes) + 1.4), layout="constrained")
    panels = figure.subplots(1, 1 + changed, sharey=True, squeeze=False)[0]
    positions = np.arange(len(classes))
    space = max([*old, *new, 1]) * (1.34 if changed else 1.18)  # room for the numbers

    panels[0].barh(positions, old, color=BLUE, height=0.72)
    panels[0].set_title(f"In the training split: {old.sum():,}")
    _number_bars(panels[0], old, [f"{n:,}" for n in old], space)
    if changed:
        kept = np.minimum(old, new)
        added, dropped = new - kept, old - kept
        panels[1].barh(positions, kept, color=BLUE, height=0.72, label="Kept")
        looks: dict[str, tuple[NDArray[np.int64], dict[str, Any]]] = {
            "Added": (added, {"color": ORANGE, "edgecolor": "white", "hatch": "////", "linewidth": 0}),
            "Dropped": (dropped, {"color": "none", "edgecolor": GREY, "linestyle": (0, (3, 2)), "linewidth": 0.9}),
        }
        for label, (lengths, look) in looks.items():
            if (some := lengths > 0).any():
                panels[1].barh(positions[some], lengths[some], left=kept[some], height=0.72, label=label, **look)
        panels[1].set_title(f"After resampling: {new.sum():,}")
        texts = [f"{n:,} ({n - o:+,})" if n != o else f"{n:,}" for o, n in zip(old, new, strict=True)]
        _number_bars(panels[1], np.maximum(old, new), texts, space)
        figure.legend(loc="outside lower right", ncols=3)
    panels[0].set_yticks(positions, [short(name) for name in classes])
    panels[0].set_ylim(len(classes) - 0.45, -0.55)
    return figure


@styled
def reliability(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], temperature: float | None = None
) -> Figure:
    """Reliability diagram: accuracy and number of predictions by confidence, before and after calibration.

    Unlabelled rows and rows that are not finite are left out.

    Args:
        probabilities: (N, C).
        labels: (N,), negative where unlabelled.
        temperature: that the logits are divided by; None to show the probabilities as they are only.
    """
    use = (labels >= 0) & np.isfinite(probabilities).all(axis=1)
    if not use.any():
        figure = Figure(figsize=(4, 1))
        figure.text(0.5, 0.5, "No labelled images", ha="center", va="center", color=GREY)
        return figure
    probabilities, labels = probabilities[use], labels[use]
    shown = {"Expected calibration error": probabilities}
    if temperature is not None:
        logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        shown = {
            "As trained, ECE": probabilities,
            f"Temperature {temperature:.2f}, ECE": calibrated(logits, temperature),
        }

    figure = Figure(figsize=(4.6 * len(shown), 5.2), layout="constrained")
    grid = figure.subplots(2, len(shown), sharex=True, sharey="row", height_ratios=[3.4, 1], squeeze=False)
    for (title, values), (top, bottom) in zip(shown.items(), grid.T, strict=True):
        bins = calibration_bins(values, labels)
        error = float(calibration_error(Sums(np.zeros((1, 1)), bins)))
        left = np.flatnonzero(bins[:, 0]) / len(bins)
        images, confidence, hits = bins[bins[:, 0] > 0].T
        accuracy, confidence = hits / images, confidence / images
        bars: dict[str, Any] = {"x": left, "width": 1 / len(bins), "align": "edge"}
        gap: dict[str, Any] = {"color": "none", "edgecolor": VERMILLION, "hatch": "////", "linewidth": 0.8}
        top.bar(height=accuracy, color=BLUE, edgecolor="white", label="Accuracy", **bars)
        top.bar(height=confidence - accuracy, bottom=accuracy, label="Gap to the mean confidence", **gap, **bars)
        top.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1, label="Perfect calibration")
        top.set(xlim=(0, 1), ylim=(0, 1))
        top.set_title(f"{title} {error:.3f}")
        top.grid(axis="y")
        bottom.bar(height=images, color=GREY, edgecolor="white", **bars)
        bottom.set(xlabel="Confidence")
    grid[0, 0].set(ylabel="Accuracy")
    grid[0, 0].legend(loc="upper left")
    grid[1, 0].set(ylabel="Images")
    grid[1, 0].yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    grid[1, 0].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    figure.align_ylabels()
    return figure


@styled
def faces(images: NDArray[np.uint8], captions: Sequence[str]) -> Figure:
    """A gallery of faces with captions.

    Args:
        images: uint8 (N, H, W).
        captions: (N,), above the faces; line breaks are respected, long lines are cut.
    """
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    captions = ["\n".join(short(line, 18) for line in caption.splitlines()) for caption in captions]
    # One pair of axes for all, in inches: laying out a pair for each face takes seconds.
    side, pitch = 1.07, 1.15
    height = pitch + 0.14 * max(caption.count("\n") + 1 for caption in captions)
    top = height * rows
    figure = Figure(figsize=(pitch * columns, top))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, bottom = i % columns * pitch + (pitch - side) / 2, top - (i // columns + 1) * height + 0.04
        extent = (left, left + side, bottom, bottom + side)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bicubic", extent=extent, aspect="auto")
        axes.text(left + side / 2, bottom + side + 0.04, caption, fontsize=7, ha="center", va="bottom")
    axes.set(xlim=(0, pitch * columns), ylim=(0, top))
    return figure


def _number_bars(axes: Axes, lengths: NDArray[np.int64], texts: Sequence[str], space: float) -> None:
    """Write `texts` at the ends of horizontal bars, instead of an axis."""
    for position, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        axes.text(length + 0.012 * space, position, text, va="center", fontsize=8.5)
    axes.set_xlim(0, space)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
