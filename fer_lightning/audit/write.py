"""An audit as a terminal summary, findings.csv, summary.json and one page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fer_lightning.audit import findings, gallery, summary
from fer_lightning.audit.confident import confident_learning
from fer_lightning.data.quality.duplicates import near_twins
from fer_lightning.data.readers import sources
from fer_lightning.data.readers.cache import default_root
from fer_lightning.data.table import UNLABELLED, FaceTable
from fer_lightning.errors import UserError
from fer_lightning.report import html
from fer_lightning.report.files import write_folder
from fer_lightning.report.tables import print_frame

FILES = ("findings.csv", "summary.json")

LOWEST_FIRST = ("tiny", "blank", "dark", "low_contrast", "disagreement")
"""Faults that are the clearer the lower the value is."""

ABOUT_KEEPING = (
    "A row a finding: “image” has the fault. Of identical images “twin” is the one to keep, of others the one it is "
    "like. “suggested” is a label; put it under “new_label” where you agree, or none to leave the image out, and "
    "give the file to data.relabel."
)


def audit(
    data: Path,
    *,
    near: bool = True,
    votes: Path | None = None,
    runs: Sequence[Path] = (),
    out: Path | None = None,
    trust: bool = False,
) -> pd.DataFrame:
    """Look for every fault of a source of faces, print the summary and write the findings to a folder.

    Args:
        data: a CSV, a folder or an archive.
        near: whether to look for near-duplicates, too.
        votes: FER+ votes for the rows of the CSV.
        runs: folders of finished runs on this data, whose predictions tell which labels are likely wrong.
        out: the folder to write; by default `audit/<name of data>` in the working directory.
        trust: accept targets of other code in the runs' configs.

    Returns:
        What findings.csv holds, see `findings.named`.

    Raises:
        UserError: data, votes or runs cannot be read or do not belong together, or there are findings that somebody
            has worked on.
    """
    out = out or Path("audit") / data.absolute().name
    _keep_what_was_filled_in(out)
    survey = sources.survey(data, votes=votes)
    faces = survey.faces
    group = faces.twins
    parts = [findings.tiny(faces, survey.small), findings.looks(faces), findings.exact(faces)]
    if near:
        group, pairs = near_twins(faces, default_root())
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
    told = summary.sentences(known, tables["leaked"])
    as_json = {"source": faces.source, "images": len(faces), **known}
    as_json |= {name: json.loads(table.to_json(orient="index")) for name, table in tables.items()}
    shown = {name: _for_people(table) for name, table in tables.items()}
    as_csv = named.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    as_json["findings_digest"] = _digest(as_csv.encode())
    content = {
        FILES[0]: as_csv,
        FILES[1]: json.dumps(as_json, indent=1) + "\n",
        "index.html": html.document(
            data.absolute().name,
            "fer-lightning audit",
            _head(faces, skipped),
            [*_overview(shown, told), _broken(survey.broken), *gallery.galleries(faces, found)],
            FILES,
        ),
    }
    write_folder(out, {file: text.encode() for file, text in content.items()})
    print_frame(shown["counts"], f"{faces.source}: images")
    print_frame(shown["findings"], "findings")
    for sentence in told:
        print(sentence)
    print(f"findings {out / FILES[0]}\npage     {out / 'index.html'}")
    return named


def _keep_what_was_filled_in(out: Path) -> None:
    """Raises UserError where somebody has worked on the findings that are there."""
    path = out / FILES[0]
    if not path.is_file():
        return
    try:
        written = json.loads((out / FILES[1]).read_text())["findings_digest"]
    except (OSError, ValueError, KeyError):
        written = None
    if _digest(path.read_bytes()) != written:
        raise UserError(
            f"{path} is not as an audit wrote it, and another would write over what was filled in: move it, or name "
            "another folder by --out"
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
    found = findings.found("mislabelled", rows[errors.rows], value=errors.margins, suggested=errors.suggested)
    return found, number > 0


def _sorted(found: pd.DataFrame) -> pd.DataFrame:
    """By fault, the clearest first."""
    fault = found["fault"].map(list(findings.FAULTS).index)
    clearness = found["value"].where(found["fault"].isin(LOWEST_FIRST), -found["value"])
    return found.iloc[np.lexsort((found["row"], clearness, fault))]


def _for_people(table: pd.DataFrame) -> pd.DataFrame:
    title = str(table.index.name)
    return table.map("{:,}".format).rename_axis(title).reset_index().rename(columns={title: title.capitalize()})


def _overview(shown: Mapping[str, pd.DataFrame], told: Sequence[str]) -> list[str]:
    """The sections of the page that have numbers only."""
    leaks = shown["leaked"]
    return [
        html.section("Images", html.data_frame(shown["counts"])),
        html.section("Faults", html.data_frame(shown["findings"]), *map(html.note, [*told, ABOUT_KEEPING])),
        html.section("Leaks by class", html.data_frame(leaks)) if (leaks.iloc[-1, 2:] != "0").any() else "",
    ]


def _head(faces: FaceTable, skipped: Sequence[str]) -> str:
    left = f" Not looked for: {', '.join(fault.replace('_', ' ') for fault in skipped)}." if skipped else ""
    return html.note(f"{len(faces):,} images of {faces.source}.{left}")


def _broken(broken: Sequence[tuple[str, str, str, str]]) -> str:
    if not broken:
        return ""
    shown = pd.DataFrame([(b[0], b[3]) for b in broken[: gallery.SHOWN]], columns=["File", "What is wrong"])
    text = f"{len(broken):,} found." + (" The others are in findings.csv." if len(broken) > gallery.SHOWN else "")
    return html.section(gallery.TITLES["broken"], html.data_frame(shown, text))
