"""Errors of Hydra and OmegaConf in one line, with the nearest valid key or option."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config import CONF

ONE_OPTION = (
    *("accelerator", "augment", "data", "imbalance", "mix", "model", "optimizer", "precision", "protocol"),
    *("schedule", "trainer"),
)
"""Config groups of whose options a job has one."""


def composition_error(error: BaseException, arguments: Sequence[str]) -> str | None:
    """What is wrong with a command line, and the remedy, in one line; None where nothing shows that it is the user's.

    `error` was raised before the job started: while Hydra composed the config, or created the folder.
    """
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = error.options or []
        return f"{group}={option}: there is no such option{near(option, options)} {group} has {', '.join(options)}"
    if isinstance(error, OverrideParseException):
        reason = _flat(str(error)).partition(" See http")[0]
        return f"{error.override!r} is not an override: write key=value, as in imbalance=weighted ({reason})"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _of_key(error, arguments)
    if isinstance(error, OSError):
        return _of_folder(error)
    if isinstance(error, ValueError):
        return _no_option(arguments) or (_flat(str(error)) if "onfig group" in str(error) else None)
    if isinstance(error, AssertionError | AttributeError):
        return _set_below_null(arguments)
    return None


def value_error(error: OmegaConfBaseException) -> str:
    """What is wrong with the value of a key, in one line."""
    if match := re.search(r"UserError raised while resolving interpolation: (.*)", str(error)):
        return _flat(match[1])  # by a resolver of this project
    if match := re.match(r"(In '.*'): \w+ raised while composing config:\n(.*)", str(error)):
        return f"{match[1]}: {_flat(match[2])}"
    if match := re.match(r"Ambiguous value for argument '([^=']+)=(.*)'", str(error)):
        key, values = match[1], match[2]
        as_list = "" if key in ONE_OPTION else f", or write a list, '{key}=[{values}]'"
        return f"{key}={values}: several values; add -m for a job with each of them{as_list}"
    reason = _flat(str(error).strip().splitlines()[0])
    if reason.startswith("Could not append to config. An item is already at"):
        reason += "; leave out the +"
    key = getattr(error, "full_key", None)
    if key and "is not a ListConfig, list or tuple" in reason:
        return f"{key} takes a list: write '{key}=[…]'"
    return f"{key}: {reason}" if key else reason


def _of_key(error: HydraException | OmegaConfBaseException, arguments: Sequence[str]) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if match := re.search(r"Could not override '([^']+)'", str(error)):
        if not (CONF / match[1]).is_dir():
            return _unknown_key(match[1], arguments)
        if line := _no_option(arguments):
            return line
    return value_error(cause)  # type: ignore[arg-type]


def _of_folder(error: OSError) -> str | None:
    if error.filename is None:
        return None
    what = f"{error.filename}: {error.strerror}"
    if Path(str(error.filename)).suffix in (".yaml", ".yml"):
        return f"{what}; make that config file readable"
    return f"{what}; choose a writable folder with hydra.run.dir=<folder>"


def _no_option(arguments: Sequence[str]) -> str | None:
    """The line for `group=null` and the like."""
    for argument in arguments:
        group, _, value = argument.partition("=")
        options = sorted(path.stem for path in (CONF / group.lstrip("+")).glob("*.yaml")) if group else []
        if options and (value in ("null", "Null", "NULL", "~") or value.startswith("{")):
            return f"{argument}: name one of the options of {group}, {', '.join(options)}, or leave it out"
    return None


def _overrides(arguments: Sequence[str]) -> list[str]:
    return [a for a in arguments if "=" in a and not a.startswith(("-", "~", "hydra"))]


def _with_options(arguments: Sequence[str]) -> Any:
    """The config with the options that the command line chooses, without its other overrides."""
    chosen = [a for a in _overrides(arguments) if (CONF / a.lstrip("+").partition("=")[0]).is_dir() and "," not in a]
    return composed(chosen)


def composed(overrides: Sequence[str], *, hydra: bool = False) -> Any:
    """The config that overrides make, with those folders of options that this process has.

    Args:
        overrides: of a command line.
        hydra: whether to include Hydra's own node.
    """
    if GlobalHydra.instance().is_initialized():
        return compose("config", list(overrides), return_hydra_config=hydra)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def _set_below_null(arguments: Sequence[str]) -> str | None:
    """The line for an override below a key that is null, over which OmegaConf fails with internal errors."""
    try:
        composed = _with_options(arguments)
    except HydraException:  # then it is not what is wrong
        return None
    for override in _overrides(arguments):
        key, _, value = override.lstrip("+").partition("=")
        parts = key.split(".")
        for n in range(1, len(parts) + (value[:1] in "{[")):
            above = ".".join(parts[:n])
            if OmegaConf.select(composed, above) is None and not override.startswith("+"):
                return f"{override}: {above} is null with these options; choose one of the group {parts[0]} that has it"
    return None


def _unknown_key(key: str, arguments: Sequence[str]) -> str:
    try:
        composed = _with_options(arguments)
    except HydraException:
        composed = _with_options(())
    known = list(dict.fromkeys([*_keys(composed), *(f.name for f in CONF.iterdir() if f.is_dir())]))
    return f"{key}: there is no such key with these options{near(key, known)} `python train.py --cfg job` lists all"


def _keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        yield f"{prefix}{key}"
        if isinstance(child := cfg._get_node(key), DictConfig) and not child._is_none():
            yield from _keys(child, f"{prefix}{key}.")


def near(word: str, known: Sequence[str]) -> str:
    """A question with the nearest of the known words, or a semicolon."""
    matches = difflib.get_close_matches(word, known, 3, 0.5)
    if not matches:  # the right name below another key
        matches = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]][:3]
    return f"; did you mean {' or '.join(matches)}?" if matches else ";"


def _flat(text: str) -> str:
    return " ".join(text.split())
