"""Selections of images against arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_lightning.data.selection import Selection

STORED = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2)
ROWS = np.array([7, 3, 3, 19, 0])
MORE = STORED[:2] + 100


@pytest.mark.parametrize("more", [None, MORE])
@pytest.mark.parametrize(
    "index", [0, -1, slice(1, 4), slice(None), np.array([4, 0, 4]), np.array([[0, 1], [3, 2]]), []]
)
def test_a_selection_is_indexed_like_an_array(more: Any, index: Any) -> None:
    selection = Selection(STORED, ROWS, more)
    array = STORED[ROWS] if more is None else np.concatenate([STORED[ROWS], more])
    np.testing.assert_array_equal(selection[index], array[index])
    assert len(selection) == len(array) and selection.nbytes == array.nbytes
    np.testing.assert_array_equal(selection, array)


def test_a_boolean_index_selects() -> None:
    odd = np.arange(7) % 2 == 1
    np.testing.assert_array_equal(Selection(STORED, ROWS, MORE)[odd], np.concatenate([STORED[ROWS], MORE])[odd])


def test_what_is_read_can_be_changed_and_does_not_change_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", STORED)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for index in (2, slice(0, 2), np.array([1])):
        read = Selection(mapped, ROWS)[index]
        read[:] = 0
    np.testing.assert_array_equal(mapped, STORED)


def test_only_takes_some_and_adds_others() -> None:
    chosen = Selection(STORED, ROWS).only(np.array([3, 0]), MORE)
    np.testing.assert_array_equal(chosen, np.concatenate([STORED[[19, 7]], MORE]))
