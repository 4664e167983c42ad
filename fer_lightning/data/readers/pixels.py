"""The pixels column of a CSV: "70 80 82 …", 2,304 grey levels a row, parsed by numpy rather than token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.readers.streams import found
from fer_lightning.data.table import SIDE
from fer_lightning.errors import UserError

COUNT = SIDE * SIDE
"""Grey levels in a row."""

_PAD = b"   "  # so that the bytes before the first number can be looked at


def parse_pixels(fields: Sequence[bytes], first_row: int, where: str) -> NDArray[np.uint8]:
    """Grey levels of consecutive rows.

    Args:
        fields: the pixels column of each row: decimal numbers with white space around them.
        first_row: number of the first of these rows, for messages.
        where: the file, for messages.

    Returns:
        uint8 (len(fields), 48, 48).

    Raises:
        UserError: a row does not have 2,304 values, or one of them is no whole number from 0 to 255.
    """
    values = _parse_well_formed(fields)
    if values is None:
        values = np.array([_parse_row(field, first_row + i, where) for i, field in enumerate(fields)], dtype=np.uint8)
    return values.reshape(len(fields), SIDE, SIDE)


def _parse_well_formed(fields: Sequence[bytes]) -> NDArray[np.uint8] | None:
    """All values at once, uint8 (len(fields) * 2304,), or None if anything at all is out of the ordinary."""
    text = np.frombuffer(_PAD + b" ".join(fields) + b" ", dtype=np.uint8)
    digit = text - np.uint8(ord("0"))  # wraps round, so that only digits are below 10
    is_digit = digit < 10
    if not np.all(is_digit | (text == ord(" "))):
        return None
    if np.any(is_digit[3:] & is_digit[2:-1] & is_digit[1:-2] & is_digit[:-3]):
        return None  # a number of four digits
    last = np.flatnonzero(is_digit[3:-1] > is_digit[4:])  # of each number, where its last digit stands after the pad
    if len(last) != len(fields) * COUNT:
        return None
    stops = np.cumsum([len(field) + 1 for field in fields])
    starts = np.concatenate([[0], stops[:-1]])
    if np.any(last[::COUNT] < starts) or np.any(last[COUNT - 1 :: COUNT] >= stops):
        return None  # one row has too many numbers and another too few
    digit *= is_digit
    value = digit[3:].astype(np.uint16)  # at every byte, of the number that ends there: far faster than at `last` only
    value += digit[2:-1] * np.uint8(10)
    value += (digit[1:-2] * is_digit[2:-1]) * np.uint16(100)
    values = value[last]
    return None if values.max() > 255 else values.astype(np.uint8)


def _parse_row(field: bytes, row: int, where: str) -> list[int]:
    """The slow, exact way, which knows what is wrong."""
    tokens = field.split()
    for token in tokens:
        if not token.isdigit():
            raise UserError(
                f"{where}, row {row}: pixel {found(token)} is not a number from 0 to 255: correct or remove the row"
            )
        if len(token) > 9 or int(token) > 255:
            raise UserError(f"{where}, row {row}: pixel {found(token)} is not in 0 to 255: correct or remove the row")
    if len(tokens) != COUNT:
        raise UserError(
            f"{where}, row {row}: {len(tokens)} pixels, not {COUNT} ({SIDE} by {SIDE}): "
            "the file is cut short or of another size; download it again"
        )
    return [int(token) for token in tokens]
