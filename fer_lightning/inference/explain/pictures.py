"""Faces with their maps, and the plots of the robustness card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from fer_lightning.inference.explain.perturbations import PERTURBATIONS, Perturbation
from fer_lightning.inference.explain.robustness import undisturbed
from fer_lightning.inference.explain.saliency import Maps, scaled
from fer_lightning.report.style import BLUE, GREY, VERMILLION, styled
from fer_lightning.report.tables import most_confident

SHOWN = 3
"""Right and wrong predictions of each class on the page."""

STRENGTH = 0.6
"""Opacity of the colour where a map is 1."""

COLUMNS = 3

Picture = dict[str, Any]
"""`image`, uint8 (H, W) or RGB (H, W, 3), `title` and `caption`, as explain.html takes them."""


def overlay(face: NDArray[np.uint8], of_face: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A face, uint8 (H, W), coloured where its map, in [0, 1], is high: uint8 (H, W, 3)."""
    colours = matplotlib.colormaps["plasma"](np.clip(of_face, 0, 1))[..., :3]
    share = STRENGTH * np.clip(of_face, 0, 1)[..., None]
    mixed: NDArray[np.float64] = (1 - share) * face[..., None] + share * 255 * colours
    return np.rint(mixed).astype(np.uint8)


def strip(face: NDArray[np.uint8], maps: Maps, row: int, *, title: str, captions: Sequence[str]) -> list[Picture]:
    """A face and its map in each layer, with the given captions first."""
    pictures = [{"image": face, "title": title, "caption": list(captions)}]
    return pictures + [
        {"image": overlay(face, of_layer[row]), "title": title, "caption": [layer]} for layer, of_layer in maps.items()
    ]


def examples(
    faces: NDArray[np.uint8], predictions: pd.DataFrame, maps: Maps, classes: Sequence[str]
) -> dict[str, dict[str, list[list[Picture]]]]:
    """By true class the most confident right and wrong predictions, with the maps of the predicted class.

    Args:
        faces: uint8 (N, H, W).
        predictions: of them, from `tables.predictions`.
        maps: of the predicted classes.
        classes: class names in label order.
    """
    result: dict[str, dict[str, list[list[Picture]]]] = {}
    for name in classes:
        of_class = {}
        for kind, correct in (("right", True), ("wrong", False)):
            rows = most_confident(predictions, correct=correct, label=name)[:SHOWN]
            of_class[kind] = [
                strip(faces[row], maps, row, title=str(predictions["id"].iloc[row]), captions=_words(predictions, row))
                for row in rows
            ]
        if any(of_class.values()):
            result[name] = of_class
    return result


def _words(predictions: pd.DataFrame, row: int) -> list[str]:
    return [f"{predictions['prediction'].iloc[row]} {predictions['confidence'].iloc[row]:.2f}"]


def mean_maps(
    faces: NDArray[np.uint8], labels: NDArray[np.int64], correct: NDArray[np.bool_], maps: Maps, classes: Sequence[str]
) -> list[list[Picture]]:
    """Of each class the mean face and, scaled to a maximum of 1, the mean maps over the correctly predicted ones."""
    result = []
    for label, name in enumerate(classes):
        rows = np.flatnonzero(correct & (labels == label))
        if len(rows):
            mean = np.rint(faces[rows].mean(0)).astype(np.uint8)
            averages = {title: scaled(of_layer[rows].mean(0, keepdims=True)) for title, of_layer in maps.items()}
            captions = [name, f"{len(rows):,} images"]
            result.append(strip(mean, averages, 0, title=name, captions=captions))
    return result


@styled
def robustness(table: pd.DataFrame) -> Figure:
    """A plot of each perturbation: accuracy with its interval, and macro-F1, over the levels.

    Args:
        table: from `robustness.measure`.
    """
    rows = -(-len(PERTURBATIONS) // COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).ravel()
    base = undisturbed(table)
    for axes, perturbation in zip(grid, PERTURBATIONS, strict=False):
        _plot(axes, table[table["perturbation"] == perturbation.name], perturbation, base)
    for axes in grid[len(PERTURBATIONS) :]:
        axes.set_axis_off()
    for axes in grid[::COLUMNS]:
        axes.set_ylabel("Score")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _plot(axes: Axes, mine: pd.DataFrame, perturbation: Perturbation, base: float) -> None:
    mine = mine.sort_values("level")
    level = mine["level"].to_numpy()
    axes.axhline(base, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), label="Accuracy of the faces as they are")
    axes.fill_between(level, base + mine["change_low"], base + mine["change_high"], color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(
        level,
        mine["accuracy"],
        color=BLUE,
        marker="o",
        markersize=3.5,
        label="Accuracy, with the 95 % interval of its change",
    )
    axes.plot(level, mine["f1_macro"], color=VERMILLION, linestyle="--", linewidth=1.2, label="Macro-F1")
    if perturbation.neutral is not None:
        axes.axvline(perturbation.neutral, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        axes.plot(perturbation.neutral, base, "o", color="white", markeredgecolor=GREY, markersize=6.5, zorder=4)
    axes.set_title(perturbation.heading)
    axes.set_xlabel(perturbation.unit)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 4, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.grid(axis="y")
