"""From a face table to its faults, a row for each; nothing here reads or writes files.

The column `twin` of a finding is the image that it duplicates: an identical image (exact duplicate), or one from the
same photograph (near-duplicate).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fer_lightning.data.ferplus import VOTES, nonface
from fer_lightning.data.quality.blank import BLANK, flat_share, is_blank, is_near_blank, spread
from fer_lightning.data.quality.duplicates import NearPairs
from fer_lightning.data.table import SPLITS, UNLABELLED, FaceTable

FAULTS = {
    "broken": "a damaged file, or one that is not an image",
    "tiny": "fewer pixels than 48 × 48; value: the shorter side",
    "blank": f"shows nothing; value: standard deviation of its grey levels, under {BLANK:g}",
    "near_blank": "almost uniform, such as a text notice; value: share of flat tiles",
    "dark": "far darker than the others; value: mean grey level",
    "bright": "far brighter than the others; value: mean grey level",
    "low_contrast": "far less contrast than the others; value: standard deviation of its grey levels",
    "duplicate": "a redundant copy within a split, shown with the image to keep; value: number of identical images",
    "leak": "identical to an image of an earlier split; value: number of identical images",
    "conflict": "labelled differently from an identical image; value: number of identical images",
    "near_duplicate": "a changed copy of an earlier image of its split; value: correlation",
    "near_leak": "a changed copy of an image of an earlier split; value: correlation",
    "near_conflict": "labelled differently from a changed copy; value: correlation",
    "nonface": "more than half of the FER+ votes are “not a face”; value: number of these votes",
    "disagreement": "no absolute majority of FER+ votes; value: most votes for any option",
    "mislabelled": "another class is more likely, by confident learning; value: difference in probability",
}
"""All faults and their meanings."""

OUTLIER = {"dark": -3.0, "bright": 3.0, "low_contrast": -4.0}
"""Distance of an outlier from the median in robust standard deviations (1.4826 median absolute deviations).

Brightness is the mean grey level; contrast is the logarithm of the standard deviation, which is skewed. In FER-2013 the
limits are a mean under 28 or over 231, with little of a face visible, and a standard deviation under 19; from 20 on
images are merely dim.
"""

_LEAST_SPREAD = {"dark": 10.0, "bright": 10.0, "low_contrast": 0.15}  # nuances are no outliers


def rows_with(fault: str, rows: NDArray[np.int64], **columns: ArrayLike) -> pd.DataFrame:
    """Findings of a fault: a row for each of `rows`. `columns` may set twin (a row), value and suggested (a class)."""
    assert fault in FAULTS
    known = {"row": rows, "twin": -1, "value": np.nan, "suggested": UNLABELLED} | columns
    arrays = {name: np.asarray(column, np.float64 if name == "value" else np.int64) for name, column in known.items()}
    return pd.DataFrame({name: np.broadcast_to(array, len(rows)) for name, array in arrays.items()}).assign(fault=fault)


def exact(faces: FaceTable) -> pd.DataFrame:
    """Duplicates, leaks and conflicts among identical images.

    One image of each group is to be kept: the first in the order of splits (training, validation, test), then of the
    table. All others are duplicates (of the first image of their split), leaks (of the first image of the earliest
    split) or both, which together are all redundant copies. A conflict is reported for each image whose label is not
    that of the first labelled image of the group.
    """
    table = _ordered(faces, faces.duplicate_groups)
    duplicates, leaks = _redundant(table)
    labelled = table[table["label"] != UNLABELLED]
    first = labelled.groupby("group")[["row", "label"]].transform("first")
    conflicts = labelled.assign(twin=first["row"])[first["label"] != labelled["label"]]
    parts = {"duplicate": duplicates, "leak": leaks, "conflict": conflicts}
    return pd.concat(
        [
            rows_with(fault, part["row"].to_numpy(), twin=part["twin"], value=part["size"])
            for fault, part in parts.items()
        ]
    )


def near(faces: FaceTable, group: NDArray[np.int64], pairs: NearPairs) -> pd.DataFrame:
    """Near-duplicates, near leaks and near conflicts, except those that `exact` reports already.

    A near-duplicate is a changed copy: mirrored, shifted, brighter, watermarked.

    Args:
        faces: the table.
        group: (N,), groups of near-duplicates.
        pairs: pairs of near-duplicates, each image standing for all identical ones.

    Returns:
        Findings. The twin is the most similar image in the split in question; if only a chain of others connects the
        two, it is the first image of the group there, and the value is missing.
    """
    edges = _edges(faces, pairs)
    table = _ordered(faces, group)
    parts = []
    for fault, rows, known in zip(
        ("near_duplicate", "near_leak"),
        _redundant(table),
        _redundant(_ordered(faces, faces.duplicate_groups)),
        strict=True,
    ):
        # A copy of an image of the split is nothing new, unless its photograph is in an earlier split as well.
        same = pd.merge(rows, known, on="row", how="inner", suffixes=("", "_exact"))
        same = same[faces.split[same["twin"]] == faces.split[same["twin_exact"]]]
        rows = rows[~rows["row"].isin(same["row"])]
        wanted = rows.assign(twin_split=faces.split[rows["twin"]])
        best = pd.merge(wanted, edges, on=["row", "twin_split"], how="left", suffixes=("_first", "")).drop_duplicates(
            "row"
        )
        twin = best["twin"].fillna(best["twin_first"]).astype(np.int64)
        parts.append(rows_with(fault, best["row"].to_numpy(), twin=twin, value=best["similarity"]))
    labels = faces.labels[edges[["row", "twin"]].to_numpy()]
    differ = edges[(labels[:, 0] != labels[:, 1]) & (labels != UNLABELLED).all(1)].drop_duplicates("row")
    parts.append(rows_with("near_conflict", differ["row"].to_numpy(), twin=differ["twin"], value=differ["similarity"]))
    return pd.concat(parts)


def looks(faces: FaceTable) -> pd.DataFrame:
    """Blank and near-blank images, then outliers of brightness and contrast among the others."""
    pixels = faces.images.reshape(len(faces), -1)
    mean, contrasts = pixels.mean(1), spread(faces.images)
    flat, blank, near_blank = flat_share(faces.images), is_blank(faces.images), is_near_blank(faces.images)
    others = np.flatnonzero(~blank & ~near_blank)
    found = {"blank": (np.flatnonzero(blank), contrasts), "near_blank": (np.flatnonzero(near_blank), flat)}
    if len(others):
        contrast = np.log(np.maximum(contrasts, BLANK))
        for fault, measure, value in (
            ("dark", mean, mean),
            ("bright", mean, mean),
            ("low_contrast", contrast, contrasts),
        ):
            deviation = measure[others] - np.median(measure[others])
            unit = max(1.4826 * float(np.median(np.abs(deviation))), _LEAST_SPREAD[fault])
            limit = OUTLIER[fault]
            found[fault] = others[deviation / unit * np.sign(limit) > abs(limit)], value
    return pd.concat([rows_with(fault, rows, value=value[rows]) for fault, (rows, value) in found.items()])


def tiny(faces: FaceTable, small: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """Images that were enlarged, given the original width and height of each by id."""
    ids = [name.decode() for name in faces.ids.tolist()]
    rows = np.array([row for row, name in enumerate(ids) if name in small], dtype=np.int64)
    return rows_with("tiny", rows, value=[float(min(small[ids[row]])) for row in rows])


def by_votes(faces: FaceTable) -> pd.DataFrame:
    """Images without a face and without an agreed label, according to FER+ taggers."""
    assert faces.votes is not None
    most = faces.votes.max(1)
    no_face = np.flatnonzero(nonface(faces.votes))
    disagreed = np.flatnonzero(2 * most.astype(np.int64) <= faces.votes.sum(1, dtype=np.int64))
    return pd.concat(
        [
            rows_with("nonface", no_face, value=faces.votes[no_face, VOTES.index("NF")]),
            rows_with("disagreement", disagreed, value=most[disagreed]),
        ]
    )


def named(faces: FaceTable, findings: pd.DataFrame, broken: Sequence[tuple[str, str, str, str]] = ()) -> pd.DataFrame:
    """The content of findings.csv: a row for each finding, broken files first.

    Args:
        faces: the table.
        findings: from the functions above, concatenated.
        broken: id, split, class and error of files that are not in the table.

    Returns:
        Columns image, split, label, fault, twin (the duplicate), twin_split, twin_label, value, suggested, new_label
        (to be filled in by hand, see `data.relabel`), note, pixel_digest (identifies the image); cells without a value
        are empty text.
    """
    classes, splits = np.array([*faces.classes, ""]), np.array(SPLITS)  # UNLABELLED, -1, is the last
    ids = np.array([name.decode() for name in faces.ids.tolist()], dtype=object)
    row, twin = findings["row"].to_numpy(), findings["twin"].to_numpy()
    has_twin = twin >= 0
    table = pd.DataFrame(
        {
            "image": ids[row],
            "split": splits[faces.split[row]],
            "label": classes[faces.labels[row]],
            "fault": findings["fault"].to_numpy(),
            "twin": np.where(has_twin, ids[twin], ""),
            "twin_split": np.where(has_twin, splits[faces.split[twin]], ""),
            "twin_label": np.where(has_twin, classes[faces.labels[twin]], ""),
            "value": findings["value"].to_numpy(dtype=np.float64),
            "suggested": classes[findings["suggested"].to_numpy()],
            "new_label": "",
            "note": "",
            "pixel_digest": faces.pixel_digests(row),
        }
    )
    unread = pd.DataFrame(broken, columns=["image", "split", "label", "note"]).assign(fault="broken", value=np.nan)
    return pd.concat([unread, table], ignore_index=True)[table.columns].fillna(
        dict.fromkeys(table.columns.drop("value"), "")
    )


def _ordered(faces: FaceTable, group: NDArray[np.int64]) -> pd.DataFrame:
    """Images of groups with more than one, in the order of splits, then of the table."""
    size = np.bincount(group)[group]
    rows = np.flatnonzero(size > 1)
    rows = rows[np.argsort(faces.split[rows], kind="stable")]
    columns = {"row": rows, "group": group[rows], "split": faces.split[rows], "label": faces.labels[rows]}
    return pd.DataFrame(columns | {"size": size[rows]})


def _redundant(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """From the table of `_ordered`: all but the first of each group and split, and all whose group is in an earlier
    split."""
    within = table.assign(twin=table.groupby(["group", "split"])["row"].transform("first"))
    first = table.groupby("group")[["row", "split"]].transform("first")
    across = table.assign(twin=first["row"])
    return within[within["twin"] != within["row"]], across[first["split"] != table["split"]]


def _edges(faces: FaceTable, pairs: NearPairs) -> pd.DataFrame:
    """Pairs of near-duplicates among all copies of either image, the most similar first; twin comes before row."""
    copies = pd.DataFrame({"row": np.arange(len(faces)), "group": faces.duplicate_groups})
    edges = pd.DataFrame(
        {
            "a": faces.duplicate_groups[pairs.first],
            "b": faces.duplicate_groups[pairs.second],
            "similarity": pairs.similarity.astype(np.float64),
        }
    )
    for end in ("a", "b"):
        edges = edges.merge(copies.rename(columns={"row": f"{end}_row", "group": end}), on=end)
    ends = edges[["a_row", "b_row"]].to_numpy()
    rank = np.empty(len(faces), dtype=np.int64)
    rank[np.argsort(faces.split, kind="stable")] = np.arange(len(faces))
    ends = np.take_along_axis(ends, rank[ends].argsort(1), axis=1)
    edges = pd.DataFrame({"row": ends[:, 1], "twin": ends[:, 0], "similarity": edges["similarity"]})
    edges["twin_split"] = faces.split[edges["twin"]]
    return edges.sort_values("similarity", ascending=False, kind="stable")
