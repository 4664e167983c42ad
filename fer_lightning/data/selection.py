"""Images that are read from the table when they are needed, so that a set larger than memory can be trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Selection:
    """Some images of an array, in a given order, and others after them; indexing reads them.

    Args:
        stored: uint8 (M, H, W), often a memory map.
        rows: int64 (N,), the indices of the selected ones; all of them by default.
        more: uint8 (K, H, W), such as augmented copies.
    """

    def __init__(
        self, stored: NDArray[np.uint8], rows: NDArray[np.int64] | None = None, more: NDArray[np.uint8] | None = None
    ) -> None:
        self.stored, self.more = stored, stored[:0] if more is None else more
        self.rows = np.arange(len(stored)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows) + len(self.more)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return len(self) * int(np.prod(self.stored.shape[1:], dtype=np.int64))

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """uint8 (..., H, W) for whatever numpy takes as an index of N + K images; always a copy."""
        # An array of indices costs no more for a larger table; they are never negative here.
        where = index if isinstance(index, np.ndarray) and index.dtype.kind == "i" else np.arange(len(self))[index]
        if not len(self.more):
            taken: NDArray[np.uint8] = self.stored.take(self.rows[where], axis=0)
            return taken
        images = np.empty((*where.shape, *self.stored.shape[1:]), dtype=np.uint8)
        first = where < len(self.rows)
        images[first] = self.stored[self.rows[where[first]]]
        images[~first] = self.more[where[~first] - len(self.rows)]
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.uint8, copy=False)

    def only(self, index: NDArray[np.int64], more: NDArray[np.uint8]) -> Selection:
        """Those of the selected images with `index`, and other images after them."""
        assert not len(self.more)
        return Selection(self.stored, self.rows[index], more)
