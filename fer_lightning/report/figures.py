"""The figures of a run, drawn for print: one style, colours that colour-blind readers tell apart, no pyplot.

Every drawing function returns a `Figure` and leaves matplotlib's settings as they were; `png` turns one into bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from io import BytesIO
from typing import Any, Literal, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from fer_lightning.training.metrics import calibration_bins, expected_calibration_error

DPI = 200

# Okabe and Ito, "Color universal design" (2008): told apart under the common colour deficiencies and in grey print.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, GREY, GRID = "#1a1a1a", "#6b6b6b", "#e6e6e6"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.8,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # a class called "$x$" is a name, not a formula
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def png(figure: Figure) -> bytes:
    """The figure at 200 dpi, cropped to what is drawn; the same figure gives the same bytes."""
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):  # drawing makes ticks, which take their style when they are made
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


@styled
def confusion_matrix(confusion: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Counts and shares of each true class; the colour is the share, so rare classes are as visible as common ones.

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
    "Accuracy, macro F1": {
        "train/accuracy": ("Training accuracy", BLUE, "-"),
        "val/accuracy": ("Validation accuracy", VERMILLION, "-"),
        "val/f1_macro": ("Validation macro F1", GREEN, "--"),
    },
    "Learning rate": {"lr": ("Learning rate", GREY, "-")},
}


@styled
def curves(
    history: pd.DataFrame,
    monitor: str = "val/f1_macro",
    mode: Literal["min", "max"] = "max",
    best_epoch: float | None = None,
) -> Figure:
    """Loss, scores and learning rate over the epochs; what was not logged is left out.

    Args:
        history: metrics.csv: column epoch, and any of train/loss, val/loss, train/accuracy, val/accuracy,
            val/f1_macro, lr. Several rows of one epoch are merged.
        monitor: the column that chose the checkpoint; its best epoch is marked.
        mode: whether the best value of `monitor` is the largest or the smallest.
        best_epoch: the epoch of the checkpoint, where that need not be the best of all.
    """
    if "epoch" in history:
        history = history.groupby("epoch").last()  # of each column, the last value that is there
    history = history.replace([np.inf, -np.inf], np.nan).dropna(axis="columns", how="all")
    panels = {
        label: {column: look for column, look in lines.items() if column in history} for label, lines in _PANELS.items()
    }
    panels = {label: lines for label, lines in panels.items() if lines}
    if not panels:
        return _empty("No training history")
    best, best_value = None, np.nan
    if monitor in history:
        watched = history[monitor].to_numpy()
        row = int(np.nanargmax(watched) if mode == "max" else np.nanargmin(watched))
        if best_epoch in history.index:
            row = history.index.tolist().index(best_epoch)
        best, best_value = history.index[row], watched[row]

    widths = [0.75 if "lr" in lines else 1 for lines in panels.values()]
    figure = Figure(figsize=(4 * sum(widths), 2.9), layout=ConstrainedLayoutEngine(wspace=0.05))
    grid = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for axes, (label, lines) in zip(grid, panels.items(), strict=True):
        for column, (name, colour, dash) in lines.items():
            values = history[column].dropna()
            marker = "o" if len(values) < 5 else None  # a line through one point cannot be seen
            axes.plot(values.index, values, label=name, color=colour, linestyle=dash, marker=marker, markersize=4)
        if best is not None:
            axes.axvline(best, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        if monitor in lines:
            look = {"color": lines[monitor][1], "markeredgecolor": INK, "markersize": 6}
            axes.plot(best, best_value, "o", label=f"Best, {best_value:.3f} in epoch {best:g}", **look)
        axes.set(xlabel="Epoch", ylabel=label)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if len(history) == 1:
            axes.set(xlim=(history.index[0] - 1, history.index[0] + 1), xticks=history.index)
        if len(lines) > 1:
            axes.legend(loc="best")
    return figure


@styled
def class_counts(before: Mapping[str, int], after: Mapping[str, int] | None = None, title: str = "") -> Figure:
    """Images per class: as the data has them and, where that differs, as trained on.

    The second panel stacks what was kept and what was added, with the outline of what was dropped: the net change of
    each class, since a class that loses images and gains copies cannot be told from counts.

    Args:
        before: images of each class in the training split.
        after: images of each class that the network is trained on in an epoch.
        title: stands above the panels.
    """
    after = dict(before) if after is None else after
    classes = list(dict.fromkeys([*before, *after]))
    old, new = (np.array([counts.get(name, 0) for name in classes], dtype=np.int64) for counts in (before, after))
    changed = bool((old != new).any())

    figure = Figure(figsize=(9.0 if changed else 5.2, 0.34 * len(classes) + 1.4), layout="constrained")
    panels = figure.subplots(1, 1 + changed, sharey=True, squeeze=False)[0]
    positions = np.arange(len(classes))
    space = max([*old, *new, 1]) * (1.34 if changed else 1.18)  # room for the numbers

    panels[0].barh(positions, old, color=BLUE, height=0.72)
    panels[0].set_title(f"As the data has them: {old.sum():,}")
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
        panels[1].set_title(f"As trained on: {new.sum():,}")
        texts = [f"{n:,} ({n - o:+,})" if n != o else f"{n:,}" for o, n in zip(old, new, strict=True)]
        _number_bars(panels[1], np.maximum(old, new), texts, space)
        figure.legend(loc="outside lower right", ncols=3)
    panels[0].set_yticks(positions, [short(name) for name in classes])
    panels[0].set_ylim(len(classes) - 0.45, -0.55)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


@styled
def reliability(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> Figure:
    """Reliability diagram: how often predictions of a given confidence are right, and how many there are.

    Rows that are unlabelled or not finite are left out.

    Args:
        probabilities: (N, C).
        labels: (N,), negative where unlabelled.
    """
    use = (labels >= 0) & np.isfinite(probabilities).all(axis=1)
    if not use.any():
        return _empty("No labelled images")
    bins = calibration_bins(torch.from_numpy(probabilities[use]), torch.from_numpy(labels[use])).numpy()
    left = np.flatnonzero(bins[:, 0]) / len(bins)
    images, confidence, hits = bins[bins[:, 0] > 0].T
    accuracy, confidence = hits / images, confidence / images

    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    place: dict[str, Any] = {"x": left, "width": 1 / len(bins), "align": "edge"}
    gap: dict[str, Any] = {"color": "none", "edgecolor": VERMILLION, "hatch": "////", "linewidth": 0.8}
    top.bar(height=accuracy, color=BLUE, edgecolor="white", label="Accuracy", **place)
    top.bar(height=confidence - accuracy, bottom=accuracy, label="Gap to the mean confidence", **gap, **place)
    top.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1, label="Perfect calibration")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="Accuracy")
    top.set_title(f"Expected calibration error {expected_calibration_error(bins):.3f}")
    top.grid(axis="y")
    top.legend(loc="upper left")
    bottom.bar(height=images, color=GREY, edgecolor="white", **place)
    bottom.set(xlabel="Confidence", ylabel="Images")
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    bottom.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    figure.align_ylabels()
    return figure


@styled
def faces(images: NDArray[np.uint8], captions: Sequence[str], columns: int = 8, title: str = "") -> Figure:
    """A gallery of faces, each with its caption.

    Args:
        images: uint8 (N, H, W).
        captions: (N,), written above the faces; line breaks are kept, long lines are cut.
        columns: faces in a row.
        title: stands above the faces.
    """
    if len(images) == 0:
        return _empty("No images")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    captions = ["\n".join(short(line, 18) for line in caption.splitlines()) for caption in captions]
    lines = max(caption.count("\n") + 1 for caption in captions)
    figure = Figure(
        figsize=(1.15 * columns, (1.15 + 0.14 * lines) * rows + (0.3 if title else 0)), layout="constrained"
    )
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, caption in zip(figure.axes, images, captions, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
        axes.set_title(caption, fontsize=7, fontweight="normal", loc="center", pad=3, y=1)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def short(name: str, width: int = 24) -> str:
    """`name` on one line of at most `width` characters."""
    name = " ".join(name.split())
    return name if len(name) <= width else name[: width - 1] + "…"


def _number_bars(axes: Axes, lengths: NDArray[np.int64], texts: Sequence[str], space: float) -> None:
    """Write `texts` at the ends of horizontal bars, in place of an axis."""
    for position, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        axes.text(length + 0.012 * space, position, text, va="center", fontsize=8.5)
    axes.set_xlim(0, space)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _empty(message: str) -> Figure:
    figure = Figure(figsize=(4, 1))
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return figure
