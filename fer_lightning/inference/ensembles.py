"""What averaging the probabilities of several networks is worth."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from fer_lightning.data.readers.remote import is_url, source_name
from fer_lightning.data.table import UNLABELLED
from fer_lightning.inference.predictor import LoadedModel
from fer_lightning.metrics.scores import HEADLINES
from fer_lightning.report import tables
from fer_lightning.report.files import folder_name
from fer_lightning.runs.results import sums_of


def title(models: Sequence[LoadedModel]) -> str:
    """The name of a model, or how many there are."""
    return models[0].name if len(models) == 1 else f"{len(models)} models"


def default_folder(
    models: Sequence[LoadedModel], what: str, name: str, data: str | os.PathLike[str] | None = None
) -> Path:
    """Where the results `name` of a command are written: into the run's folder `what` if it is of one run, else into
    the folder `what` of the working directory.

    Digests of paths distinguish files, groups of models and data, other than a run's own, that have the same name.
    """
    if data is not None:
        name = f"{source_name(data)}-{_digest([data])}-{name}"
    if len(models) == 1 and models[0].description is None:
        return models[0].path / what / name
    return Path(what) / folder_name(f"{title(models)}-{_digest([one.path for one in models])}-{name}")


def _digest(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Of absolute paths, or URLs."""
    texts = [os.fspath(path) for path in paths]
    whole = "\n".join(text if is_url(text) else os.path.abspath(text) for text in texts)
    return hashlib.blake2b(whole.encode(), digest_size=3).hexdigest()


def members_table(names: Sequence[str], logits: Sequence[Tensor], labels: NDArray[np.int64]) -> pd.DataFrame:
    """The headline metrics of each member.

    Args:
        names: (M,), of the members.
        logits: M of them, float (N, C).
        labels: int64 (N,).

    Returns:
        Columns model and the names of the metrics, a row for each member.
    """
    rows = [{m.name: float(m.compute(sums_of(one, labels))) for m in HEADLINES} for one in logits]
    return pd.DataFrame([{"model": name, **row} for name, row in zip(names, rows, strict=True)])


def summary(
    table: pd.DataFrame, logits: Sequence[Tensor], labels: NDArray[np.int64], accuracy: float
) -> dict[str, float]:
    """Entries of metrics.json on the members of an ensemble: their number and mean accuracy, the gain in accuracy over
    that mean, and the share of images for which two members disagree, on average over the pairs.

    Args:
        table: from `members_table`.
        logits: of the members, float (N, C).
        labels: int64 (N,).
        accuracy: of the ensemble.
    """
    known = labels != UNLABELLED
    guesses = [one.argmax(1).numpy()[known] for one in logits]
    mean = float(table["accuracy"].mean())
    return {
        "members/number": len(logits),
        "members/accuracy_mean": mean,
        "members/gain": accuracy - mean,
        "members/disagreement": float(np.mean([(a != b).mean() for a, b in combinations(guesses, 2)])),
    }


def show(table: pd.DataFrame, metrics: Mapping[str, float | str]) -> None:
    """Print the members, the ensemble, and what it gains."""
    whole = {metric.name: metrics[f"test/{metric.name}"] for metric in HEADLINES}
    rows = pd.concat([table, pd.DataFrame([{"model": "mean of their probabilities", **whole}])])
    titles = {metric.name: metric.title for metric in HEADLINES}
    text = rows.astype(object).rename(columns=titles)
    for title in titles.values():
        text[title] = [f"{value:.4f}" for value in text[title]]
    tables.print_frame(text, "Members", summary_rows=1)
    print(
        f"gain in accuracy over the mean member {metrics['members/gain']:+.4f}; two members disagree on "
        f"{metrics['members/disagreement']:.1%} of the images"
    )
