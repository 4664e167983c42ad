"""Expands `resume=<folder>` to the command line that the folder was started with, and `resume=auto`.

A run folder records its command line in `.hydra/overrides.yaml`, a sweep's folder in `multirun.yaml`. `resume=auto`
resumes whatever the job's folder holds, or starts there. A folder may come from a stranger, so that what it records is
checked, unless `trust=true` is typed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lightning.config.instantiate import targets_in
from fer_lightning.config.saved import read_yaml
from fer_lightning.errors import UserError
from fer_lightning.runs.folder import has_trained
from fer_lightning.runs.overrides import check_overrides, parse, values_of

AUTO = "auto"
HYDRA = ".hydra"
SWEEP = "multirun.yaml"
ITS_OWN = ("hydra.sweep.dir", "hydra.run.dir", "hydra.mode", "resume", "allow_changes", "trust")
"""Overrides of the first start that do not carry over to the next one."""


class Recorded(NamedTuple):
    """How a folder was started.

    Attributes:
        file: that the overrides were read from.
        overrides: of the command line.
        hydra: Hydra's own config, as plain containers.
        sweep: whether it is a sweep's folder.
    """

    file: Path
    overrides: list[str]
    hydra: Mapping[str, Any]
    sweep: bool


def expand(arguments: Sequence[str], groups: Path) -> list[str]:
    """The command line that `resume=<folder>` stands for; any other one as it is.

    What else was typed comes last, and so takes precedence. The working directory becomes the one of the first start,
    which relative paths belong to.

    Args:
        arguments: of the command line.
        groups: the folder of config groups.

    Raises:
        UserError: the folder holds neither a run nor a sweep, or could run code and is not trusted.
    """
    wanted = [a for a in arguments if re.match(r"\+{0,2}resume=", a)]
    if not wanted or wanted[-1].partition("=")[2] in (AUTO, "null", ""):
        return list(arguments)
    typed = [a for a in arguments if a not in wanted]
    folder = Path(wanted[-1].partition("=")[2].strip("'\"")).expanduser().absolute()
    recorded = _read(folder)
    carried = [o for o in parse(recorded.overrides, str(recorded.file)) if o.key_or_group not in ITS_OWN]
    flags = _flags(recorded.hydra, typed)
    home = _select(recorded.hydra, "runtime", "cwd")
    if not _is_trusted(typed):
        own = _typed_targets(typed)
        check_overrides(carried, where=str(recorded.file), run_dir=folder, groups=groups, own=own)
        if flags:
            raise UserError(
                f"{recorded.file.parent}: it was started with {' '.join(flags)}, whose configs may run any code; if "
                "you trust whoever made this folder, add trust=true, or type that option yourself"
            )
        if home and Path(home).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder}: its working directory {home} lies within it; add trust=true to use it")
        _check_links(folder)
        os.environ["PYTHONSAFEPATH"] = "1"  # ranks are started by `python -m`, which imports from where it is
    if home and Path(home).is_dir():
        os.chdir(home)
    mode, key = (["--multirun"], "hydra.sweep.dir") if recorded.sweep else ([], "hydra.run.dir")
    overrides = [str(o.input_line) for o in carried]
    return [*mode, *flags, *overrides, *typed, f"{key}={_quoted(folder)}", f"resume={AUTO}"]


def keep_command(run_dir: Path, cfg: DictConfig) -> None:
    """Write `.hydra/` into a run folder: what Hydra would write, but never over what the run was started with.

    Raises:
        UserError: it cannot be written.
    """
    folder = run_dir / HYDRA
    if (folder / "overrides.yaml").exists() and has_trained(run_dir):
        return
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    hydra = OmegaConf.create({"hydra": HydraConfig.get()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(own, folder / "config.yaml")
        OmegaConf.save(hydra, folder / "hydra.yaml")
        OmegaConf.save(HydraConfig.get().overrides.task, folder / "overrides.yaml")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another folder with hydra.run.dir=<folder>") from error


def _read(folder: Path) -> Recorded:
    sweep = (folder / SWEEP).is_file()
    file = folder / SWEEP if sweep else folder / HYDRA / "overrides.yaml"
    if not file.is_file():
        raise UserError(
            f"resume={folder}: there is no run and no sweep; name a folder like outputs/<date>/<time> or "
            "multirun/<date>/<time>"
        )
    source = file if sweep else folder / HYDRA / "hydra.yaml"
    hydra = _select(read_yaml(source, dict), "hydra") if source.is_file() else None
    overrides = (
        [*_list(hydra, "overrides", "task"), *_list(hydra, "overrides", "hydra")] if sweep else read_yaml(file, list)
    )
    if not isinstance(hydra, Mapping):
        raise UserError(f"{source}: Hydra's config of this folder is missing or damaged; restore the file")
    return Recorded(file, [str(override) for override in overrides], hydra, sweep)


def _check_links(folder: Path) -> None:
    """Refuse a folder with links to elsewhere: a log or a checkpoint would be written there."""
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{path}: a link out of the folder that is resumed, to {path.readlink()}; if it is yours, add "
                    "trust=true, or replace it by what it links to"
                )


def _select(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _list(node: Any, *keys: str) -> list[Any]:
    items = _select(node, *keys)
    return items if isinstance(items, list) else []


def _is_trusted(typed: Sequence[str]) -> bool:
    values = [a.lstrip("+").partition("=")[2].strip().lower() for a in typed if re.match(r"\+{0,2}trust\s*=", a)]
    return bool(values) and values[-1] == "true"


def _typed_targets(typed: Sequence[str]) -> set[str]:
    """Targets on the user's own command line, and in the files of a config folder that is named there."""
    targets = set()
    for argument in typed:
        with suppress(UserError):  # Hydra reports it
            for override in parse([argument], ""):
                last = override.key_or_group.rpartition(".")[2]
                targets |= targets_in([{last: value} for value in values_of(override)])
    for folder in _options(typed, "--config-dir", "-cd"):
        for file in Path(folder).expanduser().rglob("*.yaml"):
            targets |= set(re.findall(r"_target_['\"]?\s*:\s*['\"]?([\w.]+)", file.read_text(errors="replace")))
    return targets


def _options(typed: Sequence[str], *names: str) -> list[str]:
    """Values of an option, typed as `--name value` or `--name=value`."""
    spaced = [value for name, value in pairwise(typed) if name in names]
    return spaced + [a.partition("=")[2] for a in typed if a.partition("=")[0] in names and "=" in a]


def _flags(hydra: Mapping[str, Any], typed: Sequence[str]) -> list[str]:
    """Hydra's own options of the first start that decide what a config is made of, unless they are typed again."""
    flags = []
    name = _select(hydra, "job", "config_name")
    if name and name != "config" and not any(a.startswith(("--config-name", "-cn")) for a in typed):
        flags += ["--config-name", str(name)]
    for source in _list(hydra, "runtime", "config_sources"):
        if _select(source, "provider") == "command-line" and not any(
            a.startswith(("--config-dir", "-cd")) for a in typed
        ):
            flags += ["--config-dir", str(_select(source, "path"))]
    return flags


def _quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
