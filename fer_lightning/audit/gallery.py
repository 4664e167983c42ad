"""Findings as pictures: images, beside their duplicates if they have any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.audit.findings import FAULTS
from fer_lightning.data.table import SPLITS, UNLABELLED, FaceTable

SHOWN = 80
"""Findings of each fault on the page."""

TITLES = {"nonface": "Not a face", "tiny": "Tiny files", "mislabelled": "Likely mislabelled"}

VALUES = {
    "tiny": "{:.0f} pixels",
    "blank": "deviation {:.2f}",
    "near_blank": "{:.0%} flat",
    "dark": "mean {:.0f}",
    "bright": "mean {:.0f}",
    "low_contrast": "deviation {:.0f}",
    **dict.fromkeys(("duplicate", "leak", "conflict"), "{:.0f} identical"),
    **dict.fromkeys(("near_duplicate", "near_leak", "near_conflict"), "correlation {:.2f}"),
    "nonface": "{:.0f} votes",
    "disagreement": "{:.0f} votes at most",
    "mislabelled": "by {:.2f}",
}

_WIDE_RANGE = ("near_duplicate", "near_leak", "near_conflict")  # the doubtful ones are of interest as well


def galleries(faces: FaceTable, findings: pd.DataFrame) -> list[dict[str, Any]]:
    """The gallery of each fault that occurs: title, note and tiles, as audit.html takes them.

    Args:
        faces: the table.
        findings: from `findings.rows_with`, sorted by severity.
    """
    result = []
    for fault, meaning in FAULTS.items():
        found = findings[findings["fault"] == fault]
        if not found.empty:
            selected, selection = _selection(fault, found)
            result.append(
                {
                    "title": TITLES.get(fault, fault.replace("_", " ").capitalize()),
                    "note": f"{meaning[0].upper()}{meaning[1:]}. {len(found):,} found{selection}.",
                    "tiles": [_tile(faces, finding) for finding in selected.to_dict("records")],
                }
            )
    return result


def _selection(fault: str, found: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The findings of a fault to show, and which these are, in words."""
    if fault == "duplicate":
        groups = found.drop_duplicates("twin")
        of = "the" if len(groups) <= SHOWN else f"the {SHOWN} largest"
        return groups.head(SHOWN), f"; shown: one copy of each of {of} groups"
    if len(found) <= SHOWN:
        return found, ""
    if fault in _WIDE_RANGE:
        spread = np.linspace(0, len(found) - 1, SHOWN).astype(int)
        return found.iloc[spread], f"; shown: {SHOWN}, from the most to the least similar; all are in findings.csv"
    return found.head(SHOWN), f"; shown: the first {SHOWN}; all are in findings.csv"


def _tile(faces: FaceTable, finding: Mapping[Any, Any]) -> dict[str, Any]:
    row, twin, value, suggested = (finding[name] for name in ("row", "twin", "value", "suggested"))
    labels_differ = twin >= 0 and bool(faces.labels[row] != faces.labels[twin])
    return {
        "image": _image(faces, row, wrong=labels_differ),
        "twin": _image(faces, twin, wrong=labels_differ) if twin >= 0 else None,
        "value": "by a chain of others" if np.isnan(value) else VALUES[finding["fault"]].format(value),
        "suggested": "" if suggested == UNLABELLED else faces.classes[suggested],
    }


def _image(faces: FaceTable, row: int, *, wrong: bool) -> dict[str, Any]:
    return {
        "pixels": faces.images[row],
        "id": faces.ids[row].decode(),
        "label": (*faces.classes, "unlabelled")[faces.labels[row]],  # UNLABELLED, -1, is the last
        "split": SPLITS[faces.split[row]],
        "wrong": wrong,
    }
