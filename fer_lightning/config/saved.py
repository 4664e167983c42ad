"""YAML files of a run folder, which may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config.schema import ABOUT_RESUMING, Config
from fer_lightning.errors import UserError

T = TypeVar("T", dict[str, Any], list[Any])


def read_yaml(path: Path, kind: type[T]) -> T:
    """The content of a YAML file as plain containers; interpolations are left as they are written.

    Args:
        path: the file.
        kind: what it holds: dict or list.

    Raises:
        UserError: the file is not YAML, is not of that kind, has Python objects, or has aliases, by which a few lines
            expand to gigabytes.
    """
    try:
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
    """A resolved config, with every key of the schema and values of its types; further keys are left as they are.

    Raises:
        UserError: as `read_yaml`, or a key is missing or of the wrong type.
    """
    settings = read_yaml(path, dict)
    try:
        OmegaConf.merge(OmegaConf.structured(Config), _known(Config(), settings))
    except (OmegaConfBaseException, ValueError) as error:
        raise _not_a_config(path, error) from error
    return settings


def _known(schema: Any, settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The keys of the schema; raises ValueError where one is missing."""
    known = {}
    for field in fields(schema):
        name, node = f"{above}{field.name}", getattr(schema, field.name)
        if field.name in settings:
            value = settings[field.name]
            nested = is_dataclass(node) and isinstance(value, Mapping)
            known[field.name] = _known(node, value, f"{name}.") if nested else value
        elif name not in ABOUT_RESUMING:
            raise ValueError(f"{name} is missing")
    return known


def _not_a_config(path: Path, reason: object) -> UserError:
    text = " ".join(str(reason).split())[:200]
    return UserError(f"{path}: not a config file of a run ({text}); restore it or use another folder")
