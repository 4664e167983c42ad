"""Findings by hand: chains of near-duplicates, copies of copies, and outliers among similar images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fer_lightning.audit import findings
from fer_lightning.data.quality.duplicates import NearPairs
from fer_lightning.data.table import SPLITS, UNLABELLED, FaceTable


def table(images: list[int], splits: str, labels: list[int]) -> FaceTable:
    """Images with the same number are identical; splits by their first letter, "u" for public and "p" for private."""
    pixels = np.random.default_rng(0).integers(0, 256, (max(images) + 1, 48, 48), dtype=np.uint8)[images]
    split = np.array([SPLITS.index({"t": "train", "u": "public", "p": "private"}[s]) for s in splits], dtype=np.int8)
    ids = np.array([f"row {i}".encode() for i in range(len(images))])
    return FaceTable(pixels, np.array(labels, dtype=np.int64), split, ids, ("happy", "sad"), "by hand", "")


def listed(found: pd.DataFrame) -> set[tuple[str, int, int, float]]:
    rows = found[["fault", "row", "twin", "value"]].fillna(-1.0)
    return set(rows.itertuples(index=False, name=None))


def test_identical_images_are_duplicates_leaks_or_conflicts() -> None:
    faces = table([0, 0, 0, 1, 1, 0], "ttupup", [0, 1, 0, 0, UNLABELLED, 0])
    assert listed(findings.exact(faces)) == {
        ("duplicate", 1, 0, 4),
        ("leak", 2, 0, 4),
        ("leak", 5, 0, 4),
        ("leak", 3, 4, 2),
        ("conflict", 1, 0, 4),
    }


def test_near_duplicates_and_chains_of_them() -> None:
    # Similar pairs: 0 and 1, 1 and 2, 1 and 4. Identical pairs: 2 and 3, 0 and 5.
    faces = table([0, 1, 2, 2, 3, 0], "tuuutp", [0, 0, 0, 0, 1, 0])
    pairs = NearPairs(
        np.array([0, 1, 1]), np.array([1, 2, 4]), np.array([0.8, 0.9, 0.75], dtype=np.float32), np.zeros(3, dtype=bool)
    )
    found = findings.near(faces, np.zeros(6, dtype=np.int64), pairs)
    found["value"] = found["value"].round(2)
    assert listed(found) == {
        ("near_duplicate", 4, 0, -1),  # both are similar to 1, which is in another split
        ("near_duplicate", 2, 1, 0.9),  # 3 is an exact duplicate of 2, and 5 an exact leak from train
        ("near_leak", 1, 0, 0.8),
        ("near_leak", 2, 0, -1),
        ("near_leak", 3, 0, -1),
        ("near_conflict", 1, 4, 0.75),
    }


@pytest.mark.parametrize("n", [1, 2, 50])
def test_nuances_between_similar_images_are_not_outliers(n: int) -> None:
    rng = np.random.default_rng(1)
    images = rng.normal(120, 40, (n, 48, 48)) + rng.normal(0, 1, (n, 1, 1))
    images[0] += 20
    faces = table(list(range(n)), "t" * n, [0] * n)
    alike = FaceTable(
        np.clip(images, 0, 255).astype(np.uint8), faces.labels, faces.split, faces.ids, ("happy",), "", ""
    )
    assert findings.looks(alike).empty
