"""Class and split names in their various spellings, converted to those of this project."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.table import FER_CLASSES, SPLITS, UNLABELLED
from fer_lightning.errors import UserError, quoted

MAX_CLASSES = 1000
"""A column with more different names than this does not contain classes."""

_FER_LABELS = [str(label) for label in range(len(FER_CLASSES))]

_CLASS_SYNONYMS = {
    "anger": "angry",
    "disgusted": "disgust",
    "afraid": "fear",
    "fearful": "fear",
    "scared": "fear",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "suprise": "surprise",
    "surprised": "surprise",
    "neutrality": "neutral",
}

_SPLIT_SYNONYMS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "public": "public",
    "publictest": "public",
    "private": "private",
    "privatetest": "private",
    "test": "test",
    "testing": "test",
}


def class_name(text: str) -> str:
    """The canonical name of a class: "Happiness " -> "happy"; names that FER-2013 does not have are lower-cased."""
    name = text.encode(errors="backslashreplace").decode().strip().lower()  # a file name may be invalid UTF-8
    return _CLASS_SYNONYMS.get(name, name)


def split_name(text: str) -> str | None:
    """The member of `SPLITS` that a Usage value or a folder name means: "Public_Test" -> "public"; None if none."""
    return _SPLIT_SYNONYMS.get(re.sub(r"[\s_-]", "", text.lower()))


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct `names` in label order: those of FER-2013 in its order, then the others alphabetically."""
    distinct = set(names)
    return (*(n for n in FER_CLASSES if n in distinct), *sorted(distinct.difference(FER_CLASSES)))


class LabelColumn:
    """The emotion column: numbers are the classes of FER-2013, anything else is a class name."""

    def __init__(self) -> None:
        self.numeric = True
        self._names: list[str] = []
        self._codes: dict[bytes, int] = {}

    def code(self, field: bytes, where: str) -> int:
        """A provisional number for the label, see `resolve`."""
        code = self._codes.get(field)
        if code is None:
            code = self._codes[field] = self._learn(_text(field, where), where)
        return code

    def resolve(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """The classes, and the label of each code; the last one is for code -1."""
        classes = FER_CLASSES if self.numeric else class_order(self._names)
        labels = [classes.index(name) for name in (classes if self.numeric else self._names)]
        return classes, np.array([*labels, UNLABELLED], dtype=np.int64)

    def _learn(self, text: str, where: str) -> int:
        is_number = re.fullmatch(r"[+-]?[\d.]+", text) is not None
        if not self._codes:
            self.numeric = is_number
        if self.numeric:
            if text not in _FER_LABELS:
                known = ", ".join(f"{i} {name}" for i, name in enumerate(FER_CLASSES))
                raise UserError(f"{where}: emotion {quoted(text)} is not one of {known}: correct or remove the row")
            return int(text)
        if is_number or not text:
            raise UserError(
                f"{where}: emotion {quoted(text)} is no class name, unlike in the rows before: correct the row"
            )
        name = class_name(text)
        if name not in self._names:
            self._names.append(name)
        if len(self._names) > MAX_CLASSES:
            raise UserError(f"{where}: more than {MAX_CLASSES} different emotions: is this column the class?")
        return self._names.index(name)


class UsageColumn:
    """The Usage column: the split of each row."""

    def __init__(self) -> None:
        self._splits: dict[bytes, int] = {}

    def split(self, field: bytes, where: str) -> int:
        """An index into SPLITS."""
        split = self._splits.get(field)
        if split is None:
            text = _text(field, where)
            name = split_name(text)
            if name is None:
                raise UserError(f"{where}: Usage {quoted(text)} is not Training, PublicTest or PrivateTest: correct it")
            split = self._splits[field] = SPLITS.index(name)
        return split


def _text(field: bytes, where: str) -> str:
    try:
        return field.decode().strip()
    except UnicodeDecodeError:
        raise UserError(f"{where}: {quoted(field)} is not UTF-8: save the file as UTF-8") from None
