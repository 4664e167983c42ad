"""Candidates for near-duplicates: what is found in cells against the comparison of all pairs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fer_lightning.data.quality import candidates

Found = set[tuple[int, int, bool]]


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """3,000 random textures, of which each of the last 1,000 is one of the first, moved by up to 2 pixels, with noise;
    every other one mirrored."""
    rng = np.random.default_rng(0)
    textures = rng.normal(0, 1, (2000, 56, 56)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(t, (0, 0), 3) for t in textures]) * 400 + 128
    copies = [
        smooth[i, 4 + y : 52 + y, 4 + x : 52 + x][:, :: -1 if i % 2 else 1]
        for i, (y, x) in enumerate(rng.integers(-2, 3, (1000, 2)))
    ]
    faces = np.concatenate([smooth[:, 4:52, 4:52], np.stack(copies) + rng.normal(0, 12, (1000, 48, 48))])
    return np.clip(faces, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def all_pairs(images: NDArray[np.uint8]) -> Found:
    return found(images)


def found(images: NDArray[np.uint8]) -> Found:
    return {(i, j, mirrored) for pairs, mirrored in candidates.candidates(images) for i, j in pairs.tolist()}


def test_moved_and_mirrored_copies_are_candidates(all_pairs: Found) -> None:
    copies = {(i, 2000 + i, i % 2 == 1) for i in range(1000)}
    assert len(copies & all_pairs) > 980
    assert all(i < j for i, j, _ in all_pairs)


def test_cells_find_99_percent_of_all_pairs(
    images: NDArray[np.uint8], all_pairs: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_EXHAUSTIVE", 100)
    compared = 0
    compare = candidates._Cells._compare

    def counting(
        self: candidates._Cells, rows: NDArray[np.int64], members: NDArray[np.int64], others: object
    ) -> object:
        nonlocal compared
        compared += len(rows) * len(members)
        return compare(self, rows, members, others)  # type: ignore[arg-type]

    monkeypatch.setattr(candidates._Cells, "_compare", counting)
    in_cells = found(images)
    assert in_cells <= all_pairs
    assert len(in_cells) >= 0.99 * len(all_pairs)
    assert compared < 0.6 * 18 * len(images) ** 2


def test_the_size_of_blocks_does_not_change_the_candidates(
    images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = np.concatenate([images[:100], images[2000:2050]])
    whole = found(some)
    monkeypatch.setattr(candidates, "_BLOCK", 40)
    monkeypatch.setattr(candidates, "_PART", 7)
    assert found(some) == whole


def test_candidates_come_in_the_order_of_their_correlation(images: NDArray[np.uint8]) -> None:
    noise = np.random.default_rng(1).normal(0, 1, (48, 48))
    copies = [np.clip(images[0] + sigma * noise, 0, 255).astype(np.uint8) for sigma in (40, 5, 20)]
    pairs, mirrored = next(candidates.candidates(np.stack([images[0], *copies])))
    assert not mirrored
    assert pairs[pairs[:, 0] == 0].tolist() == [[0, 2], [0, 3], [0, 1]]


def test_no_image_has_no_candidates() -> None:
    assert not found(np.empty((0, 48, 48), dtype=np.uint8))
