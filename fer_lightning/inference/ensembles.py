"""What averaging the probabilities of several networks is worth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from fer_lightning.data.table import UNLABELLED
from fer_lightning.inference.predictor import LoadedModel
from fer_lightning.metrics.scores import HEADLINES
from fer_lightning.report import tables
from fer_lightning.report.files import folder_name
from fer_lightning.runs.results import sums_of


def title(models: Sequence[LoadedModel]) -> str:
    """The name of a model, or how many there are."""
    return models[0].name if len(models) == 1 else f"{len(models)} models"


def default_folder(models: Sequence[LoadedModel], what: str, name: str) -> Path:
    """Where the results `name` of a command are written: into the run's folder `what` if it is of one run, else into
    the folder `what` of the working directory. A digest of the paths distinguishes one group from another."""
    if len(models) == 1 and models[0].description is None:
        return models[0].path / what / name
    paths = "\n".join(str(one.path.absolute()) for one in models)
    which = f" {hashlib.blake2b(paths.encode(), digest_size=3).hexdigest()}" if len(models) > 1 else ""
    return Path(what) / folder_name(f"{title(models)}{which}-{name}")


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
