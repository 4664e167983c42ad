"""Class and split names in their various spellings, converted to those of this project."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fer_lightning.data.table import FER_CLASSES, SPLITS
from fer_lightning.errors import UserError, quoted

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


def decoded(field: bytes, where: str) -> str:
    """A label or split as text, stripped.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return field.decode().strip()
    except UnicodeDecodeError:
        raise UserError(f"{where}: {quoted(field)} is not UTF-8: save the file as UTF-8") from None


def split_index(text: str, where: str) -> int:
    """The index into `SPLITS` that a Usage value means.

    Raises:
        UserError: it means none.
    """
    name = split_name(text)
    if name is None:
        raise UserError(f"{where}: Usage {quoted(text)} is not Training, PublicTest or PrivateTest: correct it")
    return SPLITS.index(name)


def is_number(text: str) -> bool:
    """Whether an emotion is a number, which is a label of FER-2013, instead of a class name."""
    return re.fullmatch(r"[+-]?[\d.]+", text) is not None


def emotion_name(text: str, where: str, *, numeric: bool) -> str:
    """The class that an emotion means, where those of the file are numbers (`numeric`) or class names.

    Raises:
        UserError: it is no label of FER-2013, or a number among class names.
    """
    if numeric:
        if text not in _FER_LABELS:
            known = ", ".join(f"{i} {name}" for i, name in enumerate(FER_CLASSES))
            raise UserError(f"{where}: emotion {quoted(text)} is not one of {known}: correct or remove the row")
        return FER_CLASSES[int(text)]
    if is_number(text) or not text:
        raise UserError(f"{where}: emotion {quoted(text)} is no class name, unlike in the rows before: correct the row")
    return class_name(text)
