"""YAML files of a run folder, which may come from a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.errors import UserError


def read_yaml(path: Path) -> Any:
    """The content of a YAML file as plain containers; interpolations are left as they are written.

    Args:
        path: the file.

    Returns:
        A dict or a list.

    Raises:
        UserError: the file is not YAML, has Python objects, or has aliases, by which a few lines expand to gigabytes.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise UserError(f"{path}: YAML aliases (`*name`) are refused; write the values out")
        content = OmegaConf.to_container(OmegaConf.create(text))
    except (UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a config file of a run ({reason}); restore it or use another folder") from error
    return content
