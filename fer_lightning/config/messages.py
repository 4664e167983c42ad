"""Hydra's and OmegaConf's errors, told in one line with the nearest valid key or option."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.errors import UserError


def one_line(error: BaseException, arguments: Sequence[str], conf: Path) -> str | None:
    """What went wrong and the way out, on one line; None for what only a traceback explains.

    Args:
        error: what was raised.
        arguments: of the command line.
        conf: the folder of config groups, to find near names in.
    """
    if match := re.search(r"UserError raised while resolving interpolation: (.*)", str(error)):
        return _flat(match[1])  # by a resolver of ours
    if isinstance(error, UserError):
        return _flat(str(error))
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = error.options or []
        return f"{group}={option}: there is no such option{_near(option, options)} {group} has {', '.join(options)}"
    if isinstance(error, OSError):
        path = error.filename
        return (
            None if path is None else f"{path}: {error.strerror}; choose a writable folder with hydra.run.dir=<folder>"
        )
    if isinstance(error, OverrideParseException):
        reason = _flat(str(error)).partition(" See http")[0]
        return f"{error.override!r} is not an override: write key=value, as in imbalance=weighted ({reason})"
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):  # Hydra's own, of groups
        return _no_option(arguments, conf) or _flat(str(error)) if "onfig group" in str(error) else None
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    reason = _flat(str(cause).strip().splitlines()[0])
    if match := re.search(r"Could not override '([^']+)'", str(error)):
        is_group = (conf / match[1]).is_dir()
        return _no_option(arguments, conf) or reason if is_group else _unknown_key(match[1], conf)
    key = getattr(cause, "full_key", None)
    return f"{key}: {reason}" if key else reason


def _no_option(arguments: Sequence[str], conf: Path) -> str | None:
    """What to say of `group=null` and the like."""
    for argument in arguments:
        group, _, value = argument.partition("=")
        options = sorted(path.stem for path in (conf / group.lstrip("+")).glob("*.yaml")) if group else []
        if options and (value in ("null", "Null", "NULL", "~") or value.startswith("{")):
            return f"{argument}: name one of the options of {group}, {', '.join(options)}, or leave it out"
    return None


def set_below_null(arguments: Sequence[str], conf: Path) -> str | None:
    """What to say of an override below a key that is null, which OmegaConf fails over with errors of its own inside."""
    from hydra import compose, initialize_config_dir

    overrides = [a for a in arguments if "=" in a and not a.startswith(("-", "~", "hydra"))]
    groups = [a for a in overrides if (conf / a.lstrip("+").partition("=")[0]).is_dir() and "," not in a]
    with initialize_config_dir(str(conf), version_base="1.3"):
        composed: Any = compose("config", groups)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        parts = key.split(".")
        for n in range(1, len(parts) + (value[:1] in "{[")):
            node = OmegaConf.select(composed, ".".join(parts[:n]), throw_on_missing=False)
            if node is None and not override.startswith("+"):
                above = ".".join(parts[:n])
                return f"{override}: {above} is null with these options; choose one of the group {parts[0]} that has it"
    return None


def _unknown_key(key: str, conf: Path) -> str:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf), version_base="1.3"):
        known = list(dict.fromkeys([*_keys(compose("config")), *(f.name for f in conf.iterdir() if f.is_dir())]))
    return f"{key}: there is no such key{_near(key, known)} `python train.py --cfg job` lists all"


def _keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        yield f"{prefix}{key}"
        if isinstance(child := cfg._get_node(key), DictConfig) and not child._is_none():
            yield from _keys(child, f"{prefix}{key}.")


def _near(word: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, 3, 0.5)
    if not matches:  # the right name at the wrong place
        matches = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]][:3]
    return f"; did you mean {' or '.join(matches)}?" if matches else ";"


def _flat(text: str) -> str:
    return " ".join(text.split())
