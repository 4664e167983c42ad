"""A comparison as terminal tables, CSV, Markdown, LaTeX and one page."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from fer_lightning.comparison import figures
from fer_lightning.comparison.collect import collect
from fer_lightning.comparison.statistics import TESTED, Comparison, compare, conclusions, shown
from fer_lightning.errors import UserError
from fer_lightning.report import html
from fer_lightning.report.figures import png
from fer_lightning.report.files import write_folder
from fer_lightning.report.tables import print_frame

SCORES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "f1_macro": "macro-F1", "ece": "ECE"}


WIDTH = 130
"""Characters of a line where no terminal says how many."""

CLASS_SCORES = {"recall": "Recall", "f1": "F1"}


def compare_runs(
    paths: Sequence[Path],
    *,
    out: Path | None = None,
    baseline: str | None = None,
    clean: bool = False,
    resamples: int = 4000,
) -> Comparison:
    """Compare finished runs and sweeps, print the tables and write them to a folder.

    Args:
        paths: run folders, sweep folders, or folders of such.
        out: the folder to write; by default `comparison`, or `comparison-clean`, in the one path, or in the working
            directory.
        baseline: name of the setting to hold the others against; by default `none`, or the first.
        clean: score test images without a twin in training only.
        resamples: of test images and seeds.

    Raises:
        UserError: nothing to compare, or runs that were scored on different test images.
    """
    if resamples < 100:
        raise UserError(f"--resamples {resamples}: an interval needs 100 at least")
    settings, unfinished = collect(paths, clean=clean)
    comparison = compare(settings, baseline=baseline, resamples=resamples)
    out = out or (paths[0] if len(paths) == 1 else Path()) / ("comparison-clean" if clean else "comparison")
    index = _write(comparison, out, unfinished, clean)
    console = Console()
    _print(comparison, console if console.is_terminal else Console(width=WIDTH))
    for sentence in conclusions(comparison):
        print(sentence)
    if unfinished:
        print(f"left out, not finished: {', '.join(map(str, unfinished))}")
    print(f"page     {index}")
    return comparison


def summary(comparison: Comparison) -> pd.DataFrame:
    """The main table for people: a row a setting, "mean ± deviation" as text."""
    return _as_text(comparison.table, SCORES)


def per_class(comparison: Comparison, score: str) -> pd.DataFrame:
    """A score of each class for people: a row a setting.

    Args:
        comparison: to be shown.
        score: "recall" or "f1".
    """
    classes = comparison.settings[0].runs[0].classes
    return _as_text(comparison.table, {f"{score}/{name}": name for name in classes})


def in_percent(comparison: Comparison, score: str) -> pd.DataFrame:
    """As `per_class`, in whole percent: narrow enough for a screen."""
    table, classes = comparison.table, comparison.settings[0].runs[0].classes
    percent = {name: 100 * table[[f"{score}/{name}", f"{score}/{name}_sd"]].to_numpy() for name in classes}
    columns = {
        name: [shown(mean, sd, digits=0).replace(" ", "") for mean, sd in rows] for name, rows in percent.items()
    }
    return pd.DataFrame({"setting": table["setting"], **columns})


def pairwise(comparison: Comparison) -> pd.DataFrame:
    """Every difference with its simultaneous interval, for people; largest difference of macro-F1 first."""
    pairs = comparison.pairs
    if pairs.empty:
        return pairs
    rows = []
    for pair in pairs.iloc[np.argsort(-pairs["f1_macro_difference"].abs(), kind="stable")].to_dict("records"):
        # The better one first, so that differences of macro-F1 are positive.
        turned = pair["f1_macro_difference"] < 0
        a, b = (pair["b"], pair["a"]) if turned else (pair["a"], pair["b"])
        rows.append({"setting": str(a), "against": str(b), **_differences(pair, turned)})
    return pd.DataFrame(rows)


def against_baseline(comparison: Comparison) -> pd.DataFrame:
    """What the other settings are above the baseline, with simultaneous intervals, for people; a row a setting."""
    rows = []
    for pair in comparison.pairs.to_dict("records"):
        if comparison.baseline in (pair["a"], pair["b"]):
            turned = pair["a"] == comparison.baseline
            rows.append({"setting": str(pair["b"] if turned else pair["a"]), **_differences(pair, turned)})
    return pd.DataFrame(rows)


def _differences(pair: dict[Hashable, Any], turned: bool) -> dict[str, str]:
    """The columns of a pair; `turned` for b − a."""
    sign = -1 if turned else 1
    row = {}
    for score, title in TESTED.items():
        low, high = sorted((sign * pair[f"{score}_low"], sign * pair[f"{score}_high"]))
        text = f"{sign * pair[f'{score}_difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        row[title] = text + (" *" if pair[f"{score}_differs"] else "")
    return row | {"McNemar p (Holm)": f"{pair['mcnemar_p_holm']:.2g}"}


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    cells = [list(frame.columns), *frame.astype(str).to_numpy().tolist()]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    rule = "|" + "|".join(["---", *["---:"] * (len(frame.columns) - 1)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def latex(frame: pd.DataFrame, caption: str) -> str:
    """A table in LaTeX, for the package booktabs."""
    style = frame.style.hide(axis="index").format(str, escape="latex")
    style = style.format_index(str, axis="columns", escape="latex")
    text: str = style.to_latex(
        hrules=True, column_format="l" + "r" * (len(frame.columns) - 1), caption=caption, position="htbp"
    )
    return text.replace("±", r"$\pm$").replace("–", "--")


def _as_text(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    shown_columns = {
        title: [shown(*values) for values in table[[score, f"{score}_sd"]].to_numpy()]
        for score, title in columns.items()
    }
    return pd.DataFrame({"setting": table["setting"], "seeds": table["seeds"], **shown_columns})


def _write(comparison: Comparison, out: Path, unfinished: Sequence[Path], clean: bool) -> Path:
    classes = comparison.settings[0].runs[0].classes
    images = len(comparison.settings[0].runs[0].predictions)
    what = f"{images:,} {'clean ' if clean else ''}test images"
    main = summary(comparison)
    tables = {score: per_class(comparison, score) for score in CLASS_SCORES}
    caption = f"Mean and standard deviation over seeds, on {what}."
    pairs = pairwise(comparison)
    files = {
        "table.csv": _csv(comparison.table),
        "runs.csv": _csv(comparison.runs),
        "pairs.csv": _csv(comparison.pairs),
        "table.md": "\n".join([markdown(main), *map(markdown, tables.values()), markdown(pairs)]).encode(),
        "table.tex": "\n".join(
            [
                latex(main, caption),
                *(latex(t, f"{CLASS_SCORES[name]} per class. {caption}") for name, t in tables.items()),
                *([latex(pairs, f"Differences on {what}. {PAIRS}")] if len(pairs) else []),
            ]
        ).encode(),
    }
    plots = {
        "recall_by_class": figures.class_scores(comparison.table, "recall", classes),
        "f1_by_class": figures.class_scores(comparison.table, "f1", classes),
        "accuracy_f1": figures.accuracy_f1(comparison),
    }
    if len(comparison.settings) > 1:
        plots["confusion_differences"] = figures.confusion_differences(comparison)
    pngs = {name: png(figure) for name, figure in plots.items()}
    files |= {f"{name}.png": content for name, content in pngs.items()}
    files["index.html"] = _page(comparison, main, pngs, what, unfinished, list(files)).encode()
    write_folder(out, files)
    return out / "index.html"


def _page(
    comparison: Comparison,
    main: pd.DataFrame,
    pngs: dict[str, bytes],
    what: str,
    unfinished: Sequence[Path],
    files: Sequence[str],
) -> str:
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in conclusions(comparison))
    if unfinished:
        told += f'<p class="note">Left out, not finished: {escape(", ".join(map(str, unfinished)))}</p>'
    note = f"Mean ± standard deviation over seeds, on the same {what}."
    pairs = pairwise(comparison)
    sections = [
        html.section("What follows", f'<div class="card">{told}</div>'),
        html.section("Scores", html.data_frame(main, note)),
        html.section("Accuracy and macro-F1", html.plot(pngs, "accuracy_f1"), html.note(ACCURACY_F1)),
        *(
            html.section(
                f"{title} by class",
                html.plot(pngs, f"{score}_by_class"),
                html.data_frame(in_percent(comparison, score), "In percent, mean ± standard deviation over seeds."),
            )
            for score, title in CLASS_SCORES.items()
        ),
        html.section("Confusions that changed", html.plot(pngs, "confusion_differences")),
        html.section(f"Against {comparison.baseline}", html.data_frame(against_baseline(comparison), PAIRS))
        if len(pairs)
        else "",
        html.section("All differences", html.data_frame(pairs)) if len(pairs) else "",
        html.section("Runs", html.data_frame(_runs(comparison), "")),
    ]
    title = f"{len(main)} settings, {len(comparison.runs)} runs"
    return html.document(title, "fer-lightning comparison", "", sections, files)


ACCURACY_F1 = "Circles: means over seeds, each with its own 95 % interval over test images and seeds; dots: runs."

PAIRS = (
    "Differences, with intervals that cover all of them with about 95 % (bootstrap of test images and seeds, maxT). "
    "An asterisk: zero lies outside. McNemar: exact test on paired predictions, over seeds twice the median p, "
    "corrected by Holm; it is about these networks, and other seeds are not in it."
)


def _runs(comparison: Comparison) -> pd.DataFrame:
    runs = comparison.runs
    numbers = {title: runs[score].map("{:.3f}".format) for score, title in SCORES.items()}
    return pd.DataFrame({"setting": runs["setting"], "seed": runs["seed"], **numbers, "folder": runs["folder"]})


def _print(comparison: Comparison, console: Console) -> None:
    print_frame(summary(comparison), "mean ± deviation over seeds", console)
    for score, title in CLASS_SCORES.items():
        print_frame(in_percent(comparison, score), f"{title} by class, in percent", console)
    if len(comparison.settings) > 1:
        title = f"differences from {comparison.baseline}, * where zero is outside the interval"
        print_frame(against_baseline(comparison), title, console)


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
