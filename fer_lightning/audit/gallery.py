"""Findings as pictures: images, beside their twins where they have one."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.audit.findings import FAULTS
from fer_lightning.data.table import SPLITS, UNLABELLED, FaceTable
from fer_lightning.report import html

SHOWN = 80
"""Findings of each fault on the page."""

TITLES = {"nonface": "Not a face", "tiny": "Tiny files", "mislabelled": "Likely mislabelled", "broken": "Broken files"}

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

_WIDE_RANGE = ("near_duplicate", "near_leak", "near_conflict")  # of which one wants to see the doubtful ones as well


def galleries(faces: FaceTable, findings: pd.DataFrame) -> list[str]:
    """A section of the page for each fault that was found.

    Args:
        faces: the table.
        findings: as `findings.found` makes them, clearest first.
    """
    sections = []
    for fault, meaning in FAULTS.items():
        found = findings[findings["fault"] == fault]
        if found.empty:
            continue
        shown, note = _selection(fault, found)
        tiles = "".join(_tile(faces, row) for row in shown.to_dict("records"))
        note = html.note(f"{meaning[0].upper()}{meaning[1:]}. {len(found):,} found{note}.")
        title = TITLES.get(fault, fault.replace("_", " ").capitalize())
        sections.append(html.section(title, note, f'<div class="card"><div class="faces">{tiles}</div></div>'))
    return sections


def _selection(fault: str, found: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """What is shown of a fault's findings, and which these are, in words."""
    if fault == "duplicate":
        groups = found.drop_duplicates("twin")
        of = "the" if len(groups) <= SHOWN else f"the {SHOWN} largest"
        return groups.head(SHOWN), f"; shown: one copy of each of {of} groups"
    if len(found) <= SHOWN:
        return found, ""
    if fault in _WIDE_RANGE:
        places = np.linspace(0, len(found) - 1, SHOWN).astype(int)
        return found.iloc[places], f"; shown: {SHOWN}, from the most alike to the least; all are in findings.csv"
    return found.head(SHOWN), f"; shown: the first {SHOWN}; all are in findings.csv"


def _tile(faces: FaceTable, finding: Mapping[Any, Any]) -> str:
    row, twin, value = finding["row"], finding["twin"], finding["value"]
    text = "by a chain of others" if np.isnan(value) else VALUES[finding["fault"]].format(value)
    if finding["suggested"] != UNLABELLED:
        text = f'likelier <span class="right">{escape(faces.classes[finding["suggested"]])}</span> {text}'
    if twin < 0:
        return f"<figure>{_picture(faces, row)}<figcaption>{_about(faces, row)}<br>{text}</figcaption></figure>"
    pictures = _picture(faces, row) + _picture(faces, twin)
    differ = bool(faces.labels[row] != faces.labels[twin])
    captions = f"<div>{_about(faces, row, wrong=differ)}<br>{text}</div><div>{_about(faces, twin, wrong=differ)}</div>"
    return f'<figure class="pair">{pictures}<figcaption>{captions}</figcaption></figure>'


def _about(faces: FaceTable, row: int, *, wrong: bool = False) -> str:
    label = escape((*faces.classes, "unlabelled")[faces.labels[row]])  # UNLABELLED, -1, is the last
    name: str = faces.ids[row].decode()
    label = f'<span class="wrong">{label}</span>' if wrong else label
    return f"{label}, {SPLITS[faces.split[row]]}<br>{escape(name.rpartition('/')[2])}"


def _picture(faces: FaceTable, row: int) -> str:
    return html.picture(faces.images[row], faces.ids[row].decode())
