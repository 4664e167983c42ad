"""The pixels column of a CSV: "70 80 82 …", 2,304 grey levels a row, parsed by numpy rather than token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.faces import SIDE
from fer_lightning.data.streams import found
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
    last = np.flatnonzero(is_digit[:-1] > is_digit[1:])  # of each number, its last digit
    if len(last) != len(fields) * COUNT:
        return None
    stops = len(_PAD) + np.cumsum([len(field) + 1 for field in fields])
    starts = np.concatenate([[0], stops[:-1]])
    if (last[::COUNT] < starts).any() or (last[COUNT - 1 :: COUNT] >= stops).any():
        return None  # one row has too many numbers and another too few
    has_tens = is_digit[last - 1]
    has_hundreds = has_tens & is_digit[last - 2]
    if (has_hundreds & is_digit[last - 3]).any():
        return None
    values = digit[last].astype(np.uint16)
    values += np.where(has_tens, digit[last - 1], 0) * np.uint16(10)
    values += np.where(has_hundreds, digit[last - 2], 0) * np.uint16(100)
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
