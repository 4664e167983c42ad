"""The tables of a run: a row for each scored image, and the scores of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fer_lightning.data.table import UNLABELLED
from fer_lightning.metrics import scores
from fer_lightning.metrics.sums import Sums, confusion

PROBABILITY = "p_"
"""Prefix of the columns that hold the probability of a class."""

SUMMARY_ROWS = ("accuracy", "macro avg", "weighted avg")
"""The last rows of a classification report, with the names that scikit-learn uses."""


def predictions(
    ids: Sequence[str],
    splits: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    clean: NDArray[np.bool_],
    classes: Sequence[str],
) -> pd.DataFrame:
    """One row per scored image, in the given order; every other table and figure is computed from it.

    Args:
        ids: (N,).
        splits: (N,), names of splits.
        labels: (N,), indices into `classes`, or `UNLABELLED`.
        probabilities: (N, C).
        clean: (N,), true if no training image is a duplicate, see `Partition.clean`.
        classes: (C,), class names in label order.

    Returns:
        Columns id, split, label (empty text if unlabelled), prediction, correct (nullable boolean, missing if
        unlabelled), confidence, clean, and `p_<class>` for each class.
    """
    guesses = probabilities.argmax(1)
    names = np.array([*classes, ""], dtype=object)  # UNLABELLED, -1, is the last
    frame = pd.DataFrame(
        {
            "id": ids,
            "split": splits,
            "label": names[labels],
            "prediction": names[guesses],
            "correct": pd.Series(guesses == labels, dtype="boolean").where(labels != UNLABELLED),
            "confidence": probabilities.max(1),
            "clean": clean,
        }
    )
    columns = [f"{PROBABILITY}{name}" for name in classes]
    return pd.concat([frame, pd.DataFrame(probabilities, columns=columns)], axis=1)


def labels_of(predictions: pd.DataFrame, classes: Sequence[str], column: str = "label") -> NDArray[np.int64]:
    """Class indices (N,) of a column of class names; -1 where it is empty."""
    return np.array(pd.Index(classes).get_indexer(pd.Index(predictions[column])), dtype=np.int64)


def classes_of(predictions: pd.DataFrame) -> tuple[str, ...]:
    """The class names in label order, from the columns of a table from `predictions`."""
    return tuple(name.removeprefix(PROBABILITY) for name in predictions.columns if name.startswith(PROBABILITY))


def probabilities_of(predictions: pd.DataFrame, classes: Sequence[str]) -> NDArray[np.float64]:
    """The probabilities (N, C) in a table from `predictions`."""
    return predictions[[f"{PROBABILITY}{name}" for name in classes]].to_numpy(dtype=np.float64)


def confusion_of(predictions: pd.DataFrame, classes: Sequence[str]) -> NDArray[np.int64]:
    """The confusion matrix (C, C) of a table from `predictions`."""
    labels, guesses = (labels_of(predictions, classes, column) for column in ("label", "prediction"))
    return confusion(labels, guesses, len(classes))


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
    return pd.DataFrame(confusion, index=pd.Index(classes, name="true"), columns=pd.Index(classes, name="predicted"))


def most_confident(predictions: pd.DataFrame, *, correct: bool, label: str | None = None) -> NDArray[np.int64]:
    """Row numbers of the correct or wrong predictions, of one true class or of all, the most confident first."""
    chosen = predictions["correct"].fillna(not correct).to_numpy(dtype=bool) == correct
    if label is not None:
        chosen &= (predictions["label"] == label).to_numpy()
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-predictions["confidence"].to_numpy()[rows], kind="stable")]


def as_csv(frame: pd.DataFrame, float_format: str = "%.6g") -> bytes:
    """The content of a CSV file, without the index."""
    return frame.to_csv(index=False, float_format=float_format, lineterminator="\n").encode()


def print_report(predictions: pd.DataFrame, classes: Sequence[str], title: str) -> None:
    """Print the classification report of a table from `predictions`."""
    report = classification_report(confusion_of(predictions, classes), classes)
    text = report.astype(object)
    for column in ("precision", "recall", "f1"):
        text[column] = [("" if np.isnan(value) else f"{value:.3f}") for value in report[column]]
    text["support"] = [f"{n:,}" for n in report["support"]]
    print_frame(text, title, summary_rows=len(SUMMARY_ROWS))


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
