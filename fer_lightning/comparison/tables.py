"""The tables of a comparison for people: in the terminal, Markdown, LaTeX and on the page."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.comparison.statistics import Comparison, mean_with_sd
from fer_lightning.metrics.scores import HEADLINES, PRIMARY, TESTED


def summary(comparison: Comparison) -> pd.DataFrame:
    """The main table: a row for each setting, "mean ± standard deviation" as text."""
    return _as_text(comparison.table, {metric.name: metric.phrase for metric in HEADLINES})


def per_class(comparison: Comparison, score: str) -> pd.DataFrame:
    """A score of each class: a row for each setting.

    Args:
        comparison: from `compare`.
        score: "recall" or "f1".
    """
    classes = comparison.settings[0].runs[0].classes
    return _as_text(comparison.table, {f"{score}/{name}": name for name in classes})


def in_percent(comparison: Comparison, score: str) -> pd.DataFrame:
    """As `per_class`, in whole percent: narrow enough for a screen."""
    table, classes = comparison.table, comparison.settings[0].runs[0].classes
    percent = {name: 100 * table[[f"{score}/{name}", f"{score}/{name}_sd"]].to_numpy() for name in classes}
    columns = {
        name: [mean_with_sd(mean, sd, digits=0).replace(" ", "") for mean, sd in rows] for name, rows in percent.items()
    }
    return pd.DataFrame({"setting": table["setting"], **columns})


def pairwise(comparison: Comparison) -> pd.DataFrame:
    """All differences with simultaneous confidence intervals, the largest in the primary metric first."""
    pairs, primary = comparison.pairs, f"{PRIMARY}_difference"
    if pairs.empty:
        return pairs
    rows = []
    for pair in pairs.iloc[np.argsort(-pairs[primary].abs(), kind="stable")].to_dict("records"):
        # The better setting first, so that differences in the primary metric are positive.
        swapped = pair[primary] < 0
        a, b = (pair["b"], pair["a"]) if swapped else (pair["a"], pair["b"])
        rows.append({"setting": str(a), "compared with": str(b), **_differences(pair, swapped)})
    return pd.DataFrame(rows)


def from_baseline(comparison: Comparison) -> pd.DataFrame:
    """Differences of the other settings from the baseline with simultaneous confidence intervals."""
    rows = []
    for pair in comparison.pairs.to_dict("records"):
        if comparison.baseline in (pair["a"], pair["b"]):
            swapped = pair["a"] == comparison.baseline
            rows.append({"setting": str(pair["b"] if swapped else pair["a"]), **_differences(pair, swapped)})
    return pd.DataFrame(rows)


def runs(comparison: Comparison) -> pd.DataFrame:
    """The headline metrics of each run."""
    of_runs = comparison.runs
    numbers = {metric.phrase: of_runs[metric.name].map("{:.3f}".format) for metric in HEADLINES}
    return pd.DataFrame(
        {"setting": of_runs["setting"], "seed": of_runs["seed"], **numbers, "folder": of_runs["folder"]}
    )


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    cells = [list(frame.columns), *frame.astype(str).to_numpy().tolist()]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    rule = "|" + "|".join(["---", *["---:"] * (len(frame.columns) - 1)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def latex(frame: pd.DataFrame, caption: str) -> str:
    """A table in LaTeX, for the package booktabs."""
    columns, caption = "l" + "r" * (len(frame.columns) - 1), caption.replace("%", r"\%")
    text = frame.to_latex(index=False, escape=True, column_format=columns, caption=caption, position="htbp")
    return text.replace("±", r"$\pm$").replace("–", "--")


def _differences(pair: Mapping[Hashable, Any], swapped: bool) -> dict[str, str]:
    """The columns of a pair; those of b − a if swapped."""
    sign = -1 if swapped else 1
    row = {}
    for metric in TESTED:
        difference, low, high = (sign * pair[f"{metric.name}_{part}"] for part in ("difference", "low", "high"))
        text = f"{difference:+.3f} ({min(low, high):+.3f} to {max(low, high):+.3f})"
        row[metric.phrase] = text + (" *" if pair[f"{metric.name}_differs"] else "")
    return row | {"McNemar p (Holm)": f"{pair['mcnemar_p_holm']:.2g}"}


def _as_text(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    cells = {
        title: [mean_with_sd(*values) for values in table[[score, f"{score}_sd"]].to_numpy()]
        for score, title in columns.items()
    }
    return pd.DataFrame({"setting": table["setting"], "seeds": table["seeds"], **cells})
