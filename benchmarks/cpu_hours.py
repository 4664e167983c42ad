"""Accuracy over hours of one CPU core, of every run of this project that has both numbers.

    python benchmarks/cpu_hours.py docs/results/runs.csv docs/results/cpu_hours.png

The table has one row per run: its name, kind (single, distilled or ensemble), test split, number of seeds, core-hours
of training a network (of all networks, for ensembles; teachers are counted for what is distilled from them), accuracy
and its standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fer_lightning.report.style import BLUE, DPI, GREEN, GREY, ORANGE, styled

PEERS = {"PyPI fer 25.10.3": 0.654, "mini-Xception, human-models 3.0.4": 0.668, "mini-Xception and fer together": 0.692}
"""Accuracy on PrivateTest of networks in packages, from docs/peers.md."""

KINDS = {"single": (BLUE, "o"), "distilled": (GREEN, "D"), "ensemble": (ORANGE, "s")}


@styled
def draw(runs: pd.DataFrame) -> Figure:
    """The accuracies of `runs` over their core-hours, numbered from the cheapest one."""
    runs = runs.sort_values("core_hours", kind="stable").reset_index(drop=True)
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for name, accuracy in PEERS.items():
        axes.axhline(100 * accuracy, color=GREY, linewidth=0.8, linestyle=":")
        where = (0.005, 100 * accuracy)
        axes.annotate(name, where, xycoords=("axes fraction", "data"), fontsize=7, color=GREY, va="bottom")
    for kind, (colour, marker) in KINDS.items():
        for filled in (True, False):  # hollow: on another split
            some = runs[(runs["kind"] == kind) & ((runs["split"] == "PrivateTest") == filled)]
            if len(some):
                axes.errorbar(
                    some["core_hours"], 100 * some["accuracy"], yerr=100 * some["sd"].fillna(0), linestyle="none",
                    marker=marker, markersize=6, color=colour, markerfacecolor=colour if filled else "white",
                    label=kind if filled else f"{kind}, on PublicTest and PrivateTest", capsize=2,
                )  # fmt: skip
    for number, row in enumerate(runs.itertuples(), 1):
        where = (float(row.core_hours), 100 * float(row.accuracy))  # type: ignore[arg-type]
        right = (runs["core_hours"] / row.core_hours).between(1, 1.25, inclusive="neither")
        crowded = (right & ((runs["accuracy"] - row.accuracy).abs() < 0.006)).any()
        aside: dict[str, Any] = {"xytext": (-5, 3), "ha": "right"} if crowded else {"xytext": (5, 3)}
        axes.annotate(str(number), where, fontsize=7, textcoords="offset points", **aside)
    names = "\n".join(f"{number}  {name}" for number, name in enumerate(runs["run"], 1))
    axes.annotate(names, (1.02, 1), xycoords="axes fraction", va="top", fontsize=7, linespacing=1.5)
    axes.set_xlabel("core-hours of training")
    axes.set_ylabel("accuracy (%)")
    axes.set_title("FER-2013, trained on CPUs: PrivateTest")
    axes.grid(visible=True)
    axes.set_xlim(runs["core_hours"].min() / 2, runs["core_hours"].max() * 2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.12)
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    draw(pd.read_csv(arguments.runs)).savefig(arguments.figure, dpi=DPI)


if __name__ == "__main__":
    main()
