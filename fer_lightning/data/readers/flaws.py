"""What is wrong with single images of a source, noted while the others are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fer_lightning.errors import UserError


@dataclass
class Flaws:
    """Notes by row of the table; a broken row's image is black.

    Attributes:
        broken: why an image cannot be read, or means nothing.
        small: width and height of an image that was enlarged to 48 by 48.
    """

    broken: dict[int, str] = field(default_factory=dict)
    small: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, other: Flaws, first_row: int) -> None:
        """Take over the notes of a part of the table that begins at `first_row`."""
        self.broken |= {first_row + row: why for row, why in other.broken.items()}
        self.small |= {first_row + row: size for row, size in other.small.items()}


@contextmanager
def noted(flaws: Flaws | None, row: int) -> Iterator[None]:
    """Note a user's error instead of raising it, where there is something to note it in."""
    try:
        yield
    except UserError as error:
        if flaws is None:
            raise
        flaws.broken[row] = str(error)
