"""The tables of a run: a row for each scored image, and the scores of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fer_lightning.metrics import scores
from fer_lightning.metrics.sums import Sums

PROBABILITY = "p_"
"""Prefix of the columns that hold the probability of a class."""

SUMMARY_ROWS = ("accuracy", "macro avg", "weighted avg")
"""The last rows of a classification report, with the names that scikit-learn uses."""


def predictions(
    ids: Sequence[str] | Sequence[bytes] | NDArray[np.bytes_] | NDArray[np.str_],
    splits: Sequence[str] | NDArray[np.str_],
    labels: NDArray[np.int64],
    probabilities: ArrayLike,
    clean: NDArray[np.bool_],
    classes: Sequence[str],
) -> pd.DataFrame:
    """One row per scored image, in the given order; every other table and figure is computed from it.

    Args:
        ids: (N,), as `FaceTable.ids` holds them (UTF-8) or as text.
        splits: (N,), names of splits.
        labels: (N,), indices into `classes`; negative where the image is unlabelled.
        probabilities: float (N, C). Rows are scaled to sum to 1 in float64, which undoes half-precision rounding;
            a row that is not finite stays so.
        clean: (N,), true if no training image is a duplicate, see `Partition.clean`.
        classes: (C,), class names in label order.

    Returns:
        Columns id, split, label (empty text if unlabelled), prediction, correct (nullable boolean, missing if
        unlabelled), confidence, clean, and `p_<class>` for each class.
    """
    p = np.asarray(probabilities, dtype=np.float64).reshape(-1, len(classes))
    labels = np.asarray(labels)
    assert len(ids) == len(splits) == len(labels) == len(p) == len(clean)
    assert labels.size == 0 or labels.max() < len(classes)

    guesses = p.argmax(axis=1)
    p = p / p.sum(axis=1, keepdims=True)
    names = np.array([*classes, ""], dtype=object)  # index -1 is the empty name
    correct = pd.array(guesses == labels, dtype="boolean")
    correct[labels < 0] = pd.NA
    frame = pd.DataFrame(
        {
            "id": [i.decode("utf-8") if isinstance(i, bytes) else str(i) for i in ids],
            "split": [str(s) for s in splits],
            "label": names[np.maximum(labels, -1)],
            "prediction": names[guesses],
            "correct": correct,
            "confidence": p[np.arange(len(guesses)), guesses],
            "clean": np.asarray(clean, dtype=bool),
        }
    )
    columns = [f"{PROBABILITY}{name}" for name in classes]
    return pd.concat([frame, pd.DataFrame(p, columns=columns)], axis=1)


def labels_of(predictions: pd.DataFrame, classes: Sequence[str], column: str = "label") -> NDArray[np.int64]:
    """Class indices (N,) of a column of class names; -1 where it is empty."""
    return np.array(pd.Index(classes).get_indexer(pd.Index(predictions[column])), dtype=np.int64)


def classes_of(predictions: pd.DataFrame) -> tuple[str, ...]:
    """The class names in label order, from the columns of a table from `predictions`."""
    return tuple(name.removeprefix(PROBABILITY) for name in predictions.columns if name.startswith(PROBABILITY))


def probabilities_of(predictions: pd.DataFrame, classes: Sequence[str]) -> NDArray[np.float64]:
    """The probabilities (N, C) in a table from `predictions`."""
    return predictions[[f"{PROBABILITY}{name}" for name in classes]].to_numpy(dtype=np.float64)


def classification_report(confusion: NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each class, then accuracy, macro and weighted averages.

    Args:
        confusion: (C, C), rows are true classes, columns are predicted ones.
        classes: (C,), class names in label order.

    Returns:
        Columns class, precision, recall, f1, support. As in scikit-learn's report, the row "accuracy" holds the
        accuracy under f1 and has no precision and recall.
    """
    sums = Sums(confusion)
    columns = {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
    of_classes = [compute(sums) for compute in columns.values()]
    averages = [
        [float(average(compute)(sums)) for compute in columns.values()] for average in (scores.macro, scores.weighted)
    ]
    total = int(sums.images)
    rows: list[tuple[object, ...]] = list(zip(classes, *of_classes, sums.support, strict=True))
    rows.append((SUMMARY_ROWS[0], np.nan, np.nan, float(scores.accuracy(sums)), total))
    rows += [(name, *values, total) for name, values in zip(SUMMARY_ROWS[1:], averages, strict=True)]
    return pd.DataFrame(rows, columns=["class", *columns, "support"])


def confusion_matrix(confusion: NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    """The counts (C, C) with class names: the index is the true class, the columns are the predicted one."""
    return pd.DataFrame(
        np.asarray(confusion), index=pd.Index(classes, name="true"), columns=pd.Index(classes, name="predicted")
    )


def most_confident(predictions: pd.DataFrame, *, correct: bool, label: str | None = None) -> NDArray[np.int64]:
    """Row numbers of the correct or wrong predictions, of one true class or of all, the most confident first."""
    chosen = predictions["correct"].fillna(not correct).to_numpy(dtype=bool) == correct
    if label is not None:
        chosen &= (predictions["label"] == label).to_numpy()
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-predictions["confidence"].to_numpy()[rows], kind="stable")]


def print_report(report: pd.DataFrame, console: Console | None = None, title: str = "Test images, per class") -> None:
    """Print a classification report in the terminal, or to `console`."""
    text = report.astype(object)
    for column in ("precision", "recall", "f1"):
        text[column] = [("" if np.isnan(value) else f"{value:.3f}") for value in report[column]]
    text["support"] = [f"{n:,}" for n in report["support"]]
    print_frame(text, title, console, summary_rows=len(SUMMARY_ROWS))


def print_frame(frame: pd.DataFrame, title: str, console: Console | None = None, summary_rows: int = 0) -> None:
    """Print a table in the terminal, or to `console`, with all columns but the first right-aligned.

    Args:
        frame: the table, without its index.
        title: above it.
        console: instead of standard output.
        summary_rows: number of last rows that are set apart.
    """
    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for i, column in enumerate(frame.columns):
        table.add_column(Text(str(column)), justify="right" if i else "left")
    for left, cells in zip(range(len(frame), 0, -1), frame.astype(str).to_numpy().tolist(), strict=True):
        texts = [Text(cell, overflow="fold") for cell in cells]  # Text, since "[red]" may be a class name
        bold = "bold" if left <= summary_rows else None
        table.add_row(*texts, style=bold, end_section=left == summary_rows + 1)
    (console or Console()).print(table)
