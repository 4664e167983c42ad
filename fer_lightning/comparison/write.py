"""Writes a comparison as CSV, Markdown, LaTeX, figures and one page, and prints it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fer_lightning.comparison import figures, tables
from fer_lightning.comparison.collect import collect
from fer_lightning.comparison.conclusions import conclusions
from fer_lightning.comparison.statistics import Comparison, compare
from fer_lightning.errors import UserError
from fer_lightning.metrics.scores import CLASS_HEADLINES
from fer_lightning.report import html
from fer_lightning.report.files import check_writable, write_folder
from fer_lightning.report.style import png
from fer_lightning.report.tables import as_csv, print_frame

WIDTH = 130
"""Characters in a line if the output is not a terminal."""

PAIRS = (
    "Differences with simultaneous 95 % confidence intervals (bootstrap of test images and seeds, maxT); an asterisk "
    "marks intervals that exclude zero. McNemar: exact test on paired predictions, over seeds twice the median p, with "
    "Holm's correction; it compares these trained networks and ignores the variation between seeds."
)


def compare_runs(
    paths: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    baseline: str | None = None,
    clean: bool = False,
    resamples: int = 4000,
) -> Comparison:
    """Compare finished runs and sweeps, print the tables and write them to a folder.

    Args:
        paths: run folders, sweep folders, or folders of such.
        out: the folder to write; by default `comparison`, or `comparison-clean`, in the one path, or in the working
            directory.
        baseline: name of the setting to compare the others with; by default `none` or `common`, or the first.
        clean: use only test images without a duplicate in the training data.
        resamples: number of bootstrap resamples of test images and seeds.

    Raises:
        UserError: nothing to compare, or runs that were scored on different test images.
    """
    if resamples < 100:
        raise UserError(f"--resamples {resamples}: too few for confidence intervals; use at least 100")
    folders = [Path(path).expanduser() for path in paths]
    settings, unfinished = collect(folders, clean=clean)
    default = (folders[0] if len(folders) == 1 else Path()) / ("comparison-clean" if clean else "comparison")
    out = Path(out).expanduser() if out else default
    check_writable(out)
    comparison = compare(settings, baseline=baseline, resamples=resamples)
    index = _write(comparison, out, unfinished, clean)
    console = Console()
    _print(comparison, console if console.is_terminal else Console(width=WIDTH))
    for sentence in conclusions(comparison):
        print(sentence)
    if unfinished:
        print(f"unfinished runs, left out: {', '.join(map(str, unfinished))}")
    print(f"page     {index}")
    return comparison


def _write(comparison: Comparison, out: Path, unfinished: Sequence[Path], clean: bool) -> Path:
    classes, several = comparison.settings[0].runs[0].classes, len(comparison.settings) > 1
    images = f"{len(comparison.settings[0].runs[0].predictions):,} {'clean ' if clean else ''}test images"
    summary, pairs = tables.summary(comparison), tables.pairwise(comparison)
    per_class = {metric.title: tables.per_class(comparison, metric.name) for metric in CLASS_HEADLINES}
    caption = f"Mean and standard deviation over seeds, on {images}."
    latex = [
        tables.latex(summary, caption),
        *(tables.latex(table, f"{title} per class. {caption}") for title, table in per_class.items()),
        *([tables.latex(pairs, f"Differences on {images}. {PAIRS}")] if several else []),
    ]
    files = {
        "table.csv": as_csv(comparison.table),
        "runs.csv": as_csv(comparison.runs),
        "table.md": "\n".join(
            map(tables.markdown, [summary, *per_class.values(), *([pairs] if several else [])])
        ).encode(),
        "table.tex": "\n".join(latex).encode(),
    }
    plots = {
        f"{metric.name}_by_class": figures.class_scores(comparison.table, metric, classes) for metric in CLASS_HEADLINES
    }
    plots["accuracy_f1"] = figures.accuracy_f1(comparison)
    if several:
        files["pairs.csv"] = as_csv(comparison.pairs)
        plots["confusion_differences"] = figures.confusion_differences(comparison)
    pngs = {name: png(figure) for name, figure in plots.items()}
    files |= {f"{name}.png": content for name, content in pngs.items()}
    page = html.render(
        "comparison.html",
        f"{len(summary)} settings, {len(comparison.runs)} runs",
        list(files),
        kind="comparison",
        conclusions=conclusions(comparison),
        unfinished=unfinished,
        images=images,
        summary=summary,
        per_class=[(metric, tables.in_percent(comparison, metric.name)) for metric in CLASS_HEADLINES],
        figures=pngs,
        baseline=comparison.baseline,
        from_baseline=tables.from_baseline(comparison),
        pairs=pairs,
        pairs_note=PAIRS,
        runs=tables.runs(comparison),
    )
    files["index.html"] = page.encode()
    write_folder(out, files)
    for name in {"pairs.csv", "confusion_differences.png"} - files.keys():  # of an earlier comparison
        (out / name).unlink(missing_ok=True)
    return out / "index.html"


def _print(comparison: Comparison, console: Console) -> None:
    print_frame(tables.summary(comparison), "mean ± standard deviation over seeds", console)
    for metric in CLASS_HEADLINES:
        print_frame(tables.in_percent(comparison, metric.name), f"{metric.title} by class, in percent", console)
    if len(comparison.settings) > 1:
        title = f"differences from {comparison.baseline}, * if the confidence interval excludes zero"
        print_frame(tables.from_baseline(comparison), title, console)
