"""Faults of single images, recorded while the others are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fer_lightning.errors import UserError


@dataclass
class Flaws:
    """Faults by row of the table; the image of a broken row is black.

    Attributes:
        broken: why an image cannot be read or used.
        small: width and height of an image that was enlarged to 48 by 48.
    """

    broken: dict[int, str] = field(default_factory=dict)
    small: dict[int, tuple[int, int]] = field(default_factory=dict)


@contextmanager
def noted(flaws: Flaws | None, row: int) -> Iterator[None]:
    """Record a UserError in `flaws` instead of raising it, if they are given."""
    try:
        yield
    except UserError as error:
        if flaws is None:
            raise
        flaws.broken[row] = str(error)
