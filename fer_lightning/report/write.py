"""Writes the tables, figures and page of a run into its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fer_lightning.metrics.calibration import PREFIX
from fer_lightning.report import figures, html, page, tables
from fer_lightning.report.files import write_atomically
from fer_lightning.report.style import png

MISTAKES = 24
"""Number of most confident mistakes on the page."""

EXAMPLES = 8
"""Number of most confident correct predictions of each class on the page."""


def write_report(
    run_dir: Path,
    *,
    predictions: pd.DataFrame,
    classes: Sequence[str],
    counts_before: Mapping[str, int],
    counts_after: Mapping[str, int],
    metrics: Mapping[str, float | str],
    history: pd.DataFrame | None,
    images: NDArray[np.uint8],
    config_yaml: str,
    about: Mapping[str, str],
    monitor: str = "",
    best_epoch: int | None = None,
) -> Path:
    """Write `report/` under the run folder, each file atomically.

    Without labelled images there is nothing to score, and only predictions.csv, class_counts.png, curves.png and the
    page are written.

    Args:
        run_dir: the run folder.
        predictions: from `tables.predictions`, one row per scored image.
        classes: (C,), class names in label order.
        counts_before: images of each class in the training split.
        counts_after: images of each class in the training set of an epoch, after resampling.
        metrics: content of metrics.json; the page leaves out what is missing.
        history: metrics.csv, a row per epoch; None or empty if nothing was trained.
        images: uint8 (N, H, W), the scored faces.
        config_yaml: the resolved config.
        about: properties of the run, in the order in which they are shown; "name" is the title.
        monitor: the column of `history` by which the checkpoint was chosen.
        best_epoch: the epoch of that checkpoint; None if none was chosen.

    Returns:
        The page, `report/index.html`.

    Raises:
        OSError: the folder cannot be written to.
    """
    files = {"predictions.csv": tables.as_csv(predictions)}
    labels = tables.labels_of(predictions, classes)
    mistakes = _faces(predictions, images, tables.most_confident(predictions, correct=False)[:MISTAKES])
    best = {name: tables.most_confident(predictions, correct=True, label=name)[:EXAMPLES] for name in classes}
    examples = {name: _faces(predictions, images, rows) for name, rows in best.items() if len(rows)}
    report = matrix = None
    plots = {"class_counts": figures.class_counts(counts_before, counts_after)}
    if (labels >= 0).any():
        counts = tables.confusion_of(predictions, classes)
        report = tables.classification_report(counts, classes)
        matrix = tables.confusion_matrix(counts, classes)
        files["classification_report.csv"] = tables.as_csv(report, "%.6f")
        files["confusion_matrix.csv"] = matrix.to_csv(lineterminator="\n").encode()
        plots["confusion_matrix"] = figures.confusion_matrix(counts, classes)
        temperature = metrics.get(f"{PREFIX}temperature")
        plots["reliability"] = figures.reliability(
            tables.probabilities_of(predictions, classes), labels, None if temperature is None else float(temperature)
        )
    if history is not None and not history.empty:
        plots["curves"] = figures.curves(history, monitor, best_epoch)
    if mistakes:
        captions = ["{prediction} {confidence:.2f}\nlabelled {label}".format(**face) for face in mistakes]
        plots["mistakes"] = figures.faces(np.stack([face["image"] for face in mistakes]), captions)
    pngs = {name: png(figure) for name, figure in plots.items()}
    files |= {f"{name}.png": content for name, content in pngs.items()}
    index = html.render(
        "run.html",
        about.get("name", "Run"),
        list(files),
        kind="run report",
        **page.results(about, metrics),
        report=None if report is None else list(report.itertuples(index=False, name=None)),
        summary_rows=len(tables.SUMMARY_ROWS),
        confusions=None if matrix is None else page.confusions(matrix),
        figures=pngs,
        mistakes=mistakes,
        examples=examples,
        config_yaml=config_yaml,
    )
    files["index.html"] = index.encode()

    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return folder / "index.html"


def _faces(predictions: pd.DataFrame, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    columns = predictions.iloc[rows][["label", "prediction", "confidence", "id"]].assign(image=list(images[rows]))
    return columns.to_dict("records")  # type: ignore[return-value]
