"""The results of an audit in numbers and sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fer_lightning.data.table import SPLITS, UNLABELLED, FaceTable


def class_counts(faces: FaceTable) -> pd.DataFrame:
    """Images per class and split, with rows "unlabelled" (if any are) and "all"."""
    splits = [SPLITS[split] for split in np.unique(faces.split)]
    table = pd.DataFrame({split: faces.counts(faces.rows(split)) for split in splits}, index=list(faces.classes))
    unlabelled = [int((faces.labels[faces.rows(split)] == UNLABELLED).sum()) for split in splits]
    if any(unlabelled):
        table.loc["unlabelled"] = unlabelled
    table.loc["all"] = table.sum()
    return table.assign(all=table.sum(axis=1)).rename_axis("class")


def fault_counts(faces: FaceTable, named: pd.DataFrame, looked_for: list[str]) -> pd.DataFrame:
    """Findings per fault and split; for leaks also per split of the duplicate.

    Args:
        faces: the table.
        named: from `findings.named`.
        looked_for: the faults to count.
    """
    splits = [split for split in SPLITS if len(faces.rows(split)) or (named["split"] == split).any()]
    leak = named["fault"].isin(["leak", "near_leak"])
    titles = named["fault"].where(~leak, named["fault"] + " from " + named["twin_split"])
    table = pd.crosstab(titles, named["split"]).reindex(columns=splits, fill_value=0)
    order = [*dict.fromkeys(titles), *(fault for fault in looked_for if not (named["fault"] == fault).any())]
    order.sort(key=lambda title: looked_for.index(title.partition(" ")[0]))
    table = table.reindex(order, fill_value=0)
    return table.assign(all=table.sum(axis=1)).rename_axis(index="fault", columns=None)


def leaked(faces: FaceTable, findings: pd.DataFrame) -> pd.DataFrame:
    """By class, images outside train, and how many of them duplicate or nearly duplicate a training image.

    Args:
        faces: the table.
        findings: from `fer_lightning.audit.findings`.
    """
    outside = faces.split != SPLITS.index("train")
    from_train = (findings["twin"] >= 0) & (faces.split[findings["twin"]] == SPLITS.index("train"))
    columns = {"images": np.flatnonzero(outside)}
    for title, faults in (("identical", ["leak"]), ("identical or near", ["leak", "near_leak"])):
        rows = findings.loc[findings["fault"].isin(faults) & from_train, "row"].to_numpy(dtype=np.int64)
        columns[title] = np.unique(rows[outside[rows]])
    table = pd.DataFrame({title: faces.counts(rows) for title, rows in columns.items()}, index=list(faces.classes))
    table.loc["all"] = [len(rows) for rows in columns.values()]
    if not (findings["fault"] == "near_leak").any():
        table = table.drop(columns="identical or near")
    return table.rename_axis("class")


def facts(
    faces: FaceTable, findings: pd.DataFrame, looked_for: list[str], runs: int, predicted: NDArray[np.bool_]
) -> dict[str, Any]:
    """Numbers that do not follow from the counts of findings.

    Args:
        faces: the table.
        findings: from `fer_lightning.audit.findings`.
        looked_for: the faults that were looked for.
        runs: number of runs whose predictions were used.
        predicted: bool (N,), true if an image has out-of-sample predictions.
    """
    size = np.bincount(faces.duplicate_groups)
    conflicting = findings.loc[findings["fault"] == "conflict", "row"]
    known: dict[str, Any] = {
        "redundant": int(len(faces) - len(size)),
        "groups": int((size > 1).sum()),
        "conflict_groups": int(np.unique(faces.duplicate_groups[conflicting]).size),
    }
    if "nonface" in looked_for:
        assert faces.votes is not None
        unanimous = faces.votes[:, -1] == faces.votes.sum(1, dtype=np.int64)
        known["nonface_unanimous"] = int(unanimous.sum())
    if runs:
        known |= {"runs": runs, "predicted": int(predicted.sum()), "not_predicted": int((~predicted).sum())}
    return known


def sentences(known: dict[str, Any], leaks: pd.DataFrame) -> list[str]:
    """The results of `facts` and `leaked` in sentences."""
    lines = []
    if known["redundant"]:
        conflicts = known["conflict_groups"]
        lines.append(
            f"{known['redundant']:,} images are redundant exact copies, in {known['groups']:,} groups; "
            f"{conflicts:,} {'group has' if conflicts == 1 else 'groups have'} conflicting labels."
        )
    by_class: dict[str, dict[str, int]] = {str(column): leaks[column].to_dict() for column in leaks}  # type: ignore[misc]
    images = by_class.pop("images")
    for column, counts in by_class.items():
        if n := counts["all"]:
            shares = {c: counts[c] / images[c] for c in leaks.index[:-1] if counts[c]}
            worst = ", ".join(
                f"{counts[c]:,} of {images[c]:,} {c}" for c in sorted(shares, key=lambda c: -shares[c])[:2]
            )
            how = "identical" if column == "identical" else "identical or nearly identical"
            lines.append(
                f"{n:,} of {images['all']:,} validation and test images ({n / images['all']:.1%}) are {how} to a "
                f"training image; most affected: {worst}."
            )
    if "nonface_unanimous" in known:
        lines.append(f"Images with all votes for “not a face”: {known['nonface_unanimous']:,}.")
    if "runs" in known:
        runs = "1 run" if known["runs"] == 1 else f"{known['runs']} runs"
        lines.append(
            f"The labels of {known['predicted']:,} images were checked with predictions of {runs} not trained on them; "
            f"{known['not_predicted']:,} images have none."
        )
    return lines
