"""YAML files of a run folder, which may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config.schema import ABOUT_RESUMING, ADDED, Config
from fer_lightning.errors import UserError

MAX_BYTES = 1 << 20
"""Size of the largest file that is read; a run's config takes five thousand bytes."""

T = TypeVar("T", dict[str, Any], list[Any])


def read_yaml(path: Path, kind: type[T]) -> T:
    """The content of a YAML file as plain containers; interpolations are left as they are written.

    Args:
        path: the file.
        kind: what it holds: dict or list.

    Raises:
        UserError: the file is not YAML, is not of that kind, is too large, has Python objects, or has aliases, by which
            a few lines expand to gigabytes.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size:,} bytes, more than {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise UserError(f"{path}: YAML aliases (`*name`) are refused; write the values out")
        content = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(content, kind):
            raise ValueError(f"a {kind.__name__} is expected, not a {type(content).__name__}")
    except (UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise _not_a_config(path, error) from error
    return content


def read_settings(path: Path) -> dict[str, Any]:
    """A resolved config: its seed, and whichever keys it has with values of the schema's types; of the others, those
    that earlier versions lacked.

    Raises:
        UserError: as `read_yaml`, or a value is of the wrong type, or the seed is missing.
    """
    settings = read_yaml(path, dict)
    try:
        OmegaConf.merge(OmegaConf.structured(Config), _known(Config(), settings))
    except (OmegaConfBaseException, ValueError) as error:
        raise _not_a_config(path, error) from error
    if "seed" not in settings:
        raise _not_a_config(path, "seed is missing")
    for (section, key), value in ADDED.items():
        if isinstance(settings.get(section), dict):
            settings[section].setdefault(key, value)
    return settings


def check_complete(settings: Mapping[str, Any], path: Path) -> None:
    """Raises UserError unless a resolved config has every key of the schema."""
    schema = Config()
    for field in fields(schema):
        if field.name in ABOUT_RESUMING:
            continue
        if field.name not in settings:
            raise _not_a_config(path, f"{field.name} is missing")
        section = getattr(schema, field.name)
        for key in fields(section) if is_dataclass(section) else ():
            if key.name not in settings[field.name]:
                raise _not_a_config(path, f"{field.name}.{key.name} is missing")


def _known(schema: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the schema has: configs may have others."""
    known = {}
    for field in fields(schema):
        if field.name in settings:
            node, value = getattr(schema, field.name), settings[field.name]
            known[field.name] = _known(node, value) if is_dataclass(node) and isinstance(value, Mapping) else value
    return known


def _not_a_config(path: Path, reason: object) -> UserError:
    text = " ".join(str(reason).split())[:200]
    return UserError(f"{path}: not a config file of a run ({text}); restore it or use another folder")
