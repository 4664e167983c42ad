"""Runs an audit, prints a summary and writes findings.csv, summary.json and one page."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fer_lightning.audit import findings, gallery, summary
from fer_lightning.audit.confident import confident_learning
from fer_lightning.data.quality.duplicates import near_duplicates
from fer_lightning.data.readers import sources
from fer_lightning.data.readers.cache import default_root
from fer_lightning.data.readers.remote import source_name
from fer_lightning.data.table import UNLABELLED, FaceTable
from fer_lightning.errors import UserError
from fer_lightning.report import html
from fer_lightning.report.files import check_writable, write_folder
from fer_lightning.report.tables import as_csv, print_frame
from fer_lightning.runs.folder import load_settings

FILES = ("findings.csv", "summary.json")

LOWEST_FIRST = ("tiny", "blank", "dark", "low_contrast", "disagreement")
"""Faults that are the more severe the lower the value is."""


def audit(
    data: str | os.PathLike[str],
    *,
    near: bool = True,
    votes: Path | None = None,
    runs: Sequence[Path] = (),
    out: Path | None = None,
    trust: bool = False,
) -> pd.DataFrame:
    """Look for all faults in a source of faces, print a summary and write the findings to a folder.

    Args:
        data: a CSV, a folder or an archive, or the URL of one.
        near: whether to look for near-duplicates as well.
        votes: FER+ votes for the rows of the CSV.
        runs: folders of finished runs on this data, whose predictions show which labels are likely wrong.
        out: the folder to write; by default `audit/<name of data>` in the working directory.
        trust: accept targets of other code in the runs' configs.

    Returns:
        The content of findings.csv, see `findings.named`.

    Raises:
        UserError: data, votes or runs cannot be read or do not belong together, or the folder has findings that were
            edited.
    """
    name = source_name(data)
    out = (out or Path("audit") / name).expanduser()
    _check_not_edited(out)
    for run in runs:
        load_settings(run)
    survey = sources.survey(data, votes=votes)
    check_writable(out)
    faces = survey.faces
    group = faces.duplicate_groups
    parts = [findings.tiny(faces, survey.small), findings.looks(faces), findings.exact(faces)]
    if near:
        group, pairs = near_duplicates(faces, default_root())
        parts.append(findings.near(faces, group, pairs))
    if votes:
        parts.append(findings.by_votes(faces))
    predicted = np.zeros(len(faces), dtype=bool)
    if runs:
        mislabelled, predicted = _mislabelled(faces, runs, group, trust)
        parts.append(mislabelled)
    found = _sorted(pd.concat(parts, ignore_index=True))
    named = findings.named(faces, found, survey.broken)

    skipped = [fault for fault in ("near_duplicate", "near_leak", "near_conflict") if not near]
    skipped += ["nonface", "disagreement"] * (votes is None) + ["mislabelled"] * (not runs)
    looked_for = [fault for fault in findings.FAULTS if fault not in skipped]
    tables = {
        "counts": summary.class_counts(faces),
        "findings": summary.fault_counts(faces, named, looked_for),
        "leaked": summary.leaked(faces, found),
    }
    known = summary.facts(faces, found, looked_for, len({run.resolve() for run in runs}), predicted)
    sentences = summary.sentences(known, tables["leaked"])
    as_json = {"source": faces.source, "images": len(faces), **known}
    as_json |= {name: json.loads(table.to_json(orient="index")) for name, table in tables.items()}
    formatted = {name: _formatted(table) for name, table in tables.items()}
    csv = as_csv(named)
    as_json["findings_digest"] = _digest(csv)
    broken = survey.broken[: gallery.SHOWN]
    page = html.render(
        "audit.html",
        name,
        FILES,
        kind="audit",
        images=len(faces),
        source=faces.source,
        skipped=skipped,
        tables=formatted,
        has_leaks=bool((tables["leaked"].loc["all"].drop("images") > 0).any()),
        sentences=sentences,
        broken=pd.DataFrame([(b[0], b[3]) for b in broken], columns=["File", "Error"]) if broken else None,
        broken_note=f"{len(survey.broken):,} found."
        + (" The others are in findings.csv." if len(survey.broken) > gallery.SHOWN else ""),
        galleries=gallery.galleries(faces, found),
    )
    as_text = json.dumps(as_json, indent=1) + "\n"
    _check_not_edited(out)  # nor meanwhile
    write_folder(out, {FILES[0]: csv, FILES[1]: as_text.encode(), "index.html": page.encode()})
    print_frame(formatted["counts"], f"{faces.source}: images")
    print_frame(formatted["findings"], "findings")
    for sentence in sentences:
        print(sentence)
    print(f"findings {out / FILES[0]}\npage     {out / 'index.html'}")
    return named


def _check_not_edited(out: Path) -> None:
    """Raises UserError if findings.csv was edited since an audit wrote it."""
    path = out / FILES[0]
    if not path.is_file():
        return
    try:
        written = json.loads((out / FILES[1]).read_text())["findings_digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        written = None
    if _digest(path.read_bytes()) != written:
        raise UserError(
            f"{path} was edited since an audit wrote it, and would be overwritten: move it, or choose another folder "
            "with --out"
        )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _mislabelled(
    faces: FaceTable, runs: Sequence[Path], group: NDArray[np.int64], trust: bool
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Likely label errors, and which images have predictions, bool (N,)."""
    from fer_lightning.audit.predictions import out_of_sample  # takes seconds to import

    probabilities, number = out_of_sample(faces, runs, group, trust=trust)
    rows = np.flatnonzero((number > 0) & (faces.labels != UNLABELLED))
    errors = confident_learning(faces.labels[rows], probabilities[rows])
    found = findings.rows_with("mislabelled", rows[errors.rows], value=errors.margins, suggested=errors.suggested)
    return found, number > 0


def _sorted(found: pd.DataFrame) -> pd.DataFrame:
    """By fault, the most severe first."""
    fault = found["fault"].map(list(findings.FAULTS).index)
    severity = found["value"].where(found["fault"].isin(LOWEST_FIRST), -found["value"])
    return found.iloc[np.lexsort((found["row"], severity, fault))]


def _formatted(table: pd.DataFrame) -> pd.DataFrame:
    title = str(table.index.name)
    return table.map("{:,}".format).rename_axis(title).reset_index().rename(columns={title: title.capitalize()})
