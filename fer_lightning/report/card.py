"""The model card: plain Markdown with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]
from jinja2 import Environment, PackageLoader, StrictUndefined

from fer_lightning.metrics.scores import METRICS

FER2013 = "FER-2013"
"""Name of the data set in descriptions."""

TEXTS = Environment(
    loader=PackageLoader("fer_lightning.report"),
    autoescape=False,  # Markdown; class names are escaped by `cell`
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(str(text).split()).translate({ord(c): f"\\{c}" for c in "\\|<>*_`[]"})


def shell(text: object) -> str:
    """Text as one word of a command, on one line."""
    return shlex.quote(" ".join(str(text).split()).replace("`", ""))


TEXTS.filters |= {"cell": cell, "shell": shell}


def render(
    description: Mapping[str, Any],
    *,
    file: str,
    parameters: Sequence[int],
    report: pd.DataFrame | None = None,
    confusion: pd.DataFrame | None = None,
    clean: int | None = None,
) -> str:
    """The card of a model file.

    Args:
        description: JSON of the file.
        file: its name.
        parameters: of each member.
        report: of the test images, from `tables.classification_report`.
        confusion: of the test images, from `tables.confusion_matrix`.
        clean: number of test images without a duplicate in the training set.
    """
    scores = description["scores"]
    sets = [s for s in ("test", "test/clean") if f"{s}/accuracy" in scores]
    rows = [
        (metric.title, *(_score(scores, f"{prefix}/{metric.name}") for prefix in sets))
        for metric in METRICS
        if metric.title and any(f"{prefix}/{metric.name}" in scores for prefix in sets)
    ]
    return TEXTS.get_template("card.md").render(
        header=yaml.safe_dump(_header(description), sort_keys=False, allow_unicode=True),
        d=description,
        file=file,
        sets=[{"test": "test images", "test/clean": "clean test images"}[prefix] for prefix in sets],
        rows=rows,
        report=report,
        confusion=None if confusion is None else [(str(n), row.tolist()) for n, row in confusion.iterrows()],
        clean=clean,
        images=None if report is None else int(report["support"].iloc[-1]),
        parameters=parameters,
        teachers={name: told for member in description["members"] for name, told in member["teachers"].items()},
        fer2013=_is_fer2013(description),
    )


def _header(description: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the card, see https://huggingface.co/docs/hub/model-cards."""
    scores = description["scores"]
    metrics = [
        {"type": kind, "value": round(scores[f"test/{name}"], 4), "name": title}
        for name, kind, title in (("accuracy", "accuracy", "Accuracy"), ("f1_macro", "f1", "Macro-F1"))
        if f"test/{name}" in scores
    ]
    fer2013 = _is_fer2013(description)
    name = description["data"].get("name", "unknown")
    data = {"type": "fer2013" if fer2013 else "other", "name": name, "split": "test"}
    result = {"task": {"type": "image-classification"}, "dataset": data, "metrics": metrics}
    return {
        "license": description["licence"],
        "library_name": "fer-lightning",
        "pipeline_tag": "image-classification",
        "tags": ["facial-expression-recognition", "emotion-recognition"],
        **({"datasets": ["fer2013"]} if fer2013 else {}),
        "metrics": ["accuracy", "f1"],
        **({"model-index": [{"name": description["name"], "results": [result]}]} if metrics else {}),
    }


def _is_fer2013(description: Mapping[str, Any]) -> bool:
    return description["data"].get("name") == FER2013  # type: ignore[no-any-return]


def _score(scores: Mapping[str, float], key: str) -> str:
    if key not in scores:
        return ""
    low, high = scores.get(f"{key}_low"), scores.get(f"{key}_high")
    return f"{scores[key]:.3f}" + ("" if low is None or high is None else f" ({low:.3f} to {high:.3f})")
