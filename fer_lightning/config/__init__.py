"""Typed config, its validation, and the objects that are built from it."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
"""The config groups: inside the package in a wheel, beside it in a checkout."""
