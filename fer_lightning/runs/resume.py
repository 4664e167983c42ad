"""Expands `resume=<folder>` to the command line that the folder was started with, and `resume=auto`.

A run folder records its command line in `.hydra/overrides.yaml`, a sweep's folder in `multirun.yaml`. `resume=auto`
resumes whatever the job's folder holds, or starts there. A folder may come from a stranger, so that what it records is
checked, unless `trust=true` is typed.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from fer_lightning.config.instantiate import targets_in
from fer_lightning.config.saved import read_yaml
from fer_lightning.errors import UserError
from fer_lightning.report.files import write_atomically
from fer_lightning.runs.folder import OVERRIDES, has_trained
from fer_lightning.runs.overrides import check_overrides, parse, values_of
from fer_lightning.runs.sweeps import SWEEP

AUTO = "auto"
HYDRA = ".hydra"
ITS_OWN = ("hydra.sweep.dir", "hydra.run.dir", "hydra.mode", "resume", "allow_changes", "trust")
"""Overrides of the first start that do not carry over to the next one."""
ONE_RUN = "hydra.mode=RUN"
"""Ends a command line that may have `sweep=…` in it, if it is that of one job."""


def expand(arguments: Sequence[str]) -> list[str]:
    """The command line that `resume=<folder>` stands for; any other one as it is.

    Overrides that are typed as well come last, and so take precedence. The working directory becomes the one of the
    first start, which relative paths belong to.

    Raises:
        UserError: the folder holds neither a run nor a sweep, or could run code and is not trusted.
    """
    wanted = [a for a in arguments if re.match(r"\+{0,2}resume=", a)]
    if not wanted or wanted[-1].partition("=")[2] in (AUTO, "null", ""):
        return list(arguments)
    typed = [a for a in arguments if a not in wanted]
    options = get_args(typed)
    folder = Path(wanted[-1].partition("=")[2].strip("'\"")).expanduser().absolute()
    file, recorded, hydra = _read(folder)
    carried = [o for o in parse(recorded, str(file)) if o.key_or_group not in ITS_OWN]
    flags = _flags(hydra, options)
    home = _select(hydra, "runtime", "cwd")
    if not _is_trusted(typed):
        check_overrides(carried, where=str(file), run_dir=folder, own=_typed_targets(options))
        if flags:
            raise UserError(
                f"{file.parent}: it was started with {' '.join(flags)}, whose configs may run any code; if "
                "you trust whoever made this folder, add trust=true, or type that option yourself"
            )
        if home and Path(home).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder}: its working directory {home} lies within it; add trust=true to use it")
        _check_links(folder)
        os.environ["PYTHONSAFEPATH"] = "1"  # ranks are started by `python -m`, which imports from where it is
    if home and Path(home).is_dir():
        os.chdir(home)
    # sweep=… of a sweep that one job is resumed of would sweep again.
    mode, key, own = (["--multirun"], "hydra.sweep.dir", []) if file.name == SWEEP else ([], "hydra.run.dir", [ONE_RUN])
    flags += [a for a in typed if a not in options.overrides]  # Hydra takes options before all overrides only
    overrides = [*(str(o.input_line) for o in carried), *options.overrides]
    quoted = QuotedString(str(folder), Quote.single).with_quotes()
    return [*mode, *flags, *overrides, *own, f"{key}={quoted}", f"resume={AUTO}"]


def keep_command(run_dir: Path, cfg: DictConfig) -> None:
    """Write `.hydra/` into a run folder: what Hydra would write. Of a resumed run only the overrides are written, if it
    accepts changes: it is then resumed with them.

    Raises:
        UserError: it cannot be written.
    """
    folder = run_dir / HYDRA
    overrides = [o for o in HydraConfig.get().overrides.task if o.lstrip("+").partition("=")[0] not in ITS_OWN]
    resumed = (run_dir / OVERRIDES).exists() and has_trained(run_dir)
    if resumed and not cfg.allow_changes:
        return
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    hydra = OmegaConf.create({"hydra": HydraConfig.get()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resumed:
            OmegaConf.save(own, folder / "config.yaml")
            OmegaConf.save(hydra, folder / "hydra.yaml")
        write_atomically(run_dir / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(overrides)).encode())
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another folder with hydra.run.dir=<folder>") from error


def _read(folder: Path) -> tuple[Path, list[str], Mapping[str, Any]]:
    """The file that holds the overrides that a folder was started with, these, and Hydra's own config."""
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
    return file, [str(override) for override in overrides], hydra


def _check_links(folder: Path) -> None:
    """Refuse a folder with links to elsewhere: a log or a checkpoint would be written there."""
    for path in folder.rglob("*"):
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


def _typed_targets(options: Namespace) -> set[str]:
    """Targets on the user's own command line, and in the files of a config folder that is named there."""
    targets = set()
    for argument in options.overrides:
        with suppress(UserError):  # Hydra reports it
            for override in parse([argument], ""):
                last = override.key_or_group.rpartition(".")[2]
                targets |= targets_in([{last: value} for value in values_of(override)])
    if options.config_dir:
        for file in Path(options.config_dir).expanduser().rglob("*.yaml"):
            targets |= set(re.findall(r"_target_['\"]?\s*:\s*['\"]?([\w.]+)", file.read_text(errors="replace")))
    return targets


def _flags(hydra: Mapping[str, Any], options: Namespace) -> list[str]:
    """Hydra's own options of the first start that decide what a config is made of, unless they are typed again."""
    flags = []
    name = _select(hydra, "job", "config_name")
    if name and name != "config" and not options.config_name:
        flags += ["--config-name", str(name)]
    for source in _list(hydra, "runtime", "config_sources"):
        if _select(source, "provider") == "command-line" and not options.config_dir:
            flags += ["--config-dir", str(_select(source, "path"))]
    return flags
