"""`resume=<folder>` as the command line it stands for: the one the folder was made with, and `resume=auto`.

A run folder keeps its command line in `.hydra/overrides.yaml`, a sweep's folder in `multirun.yaml`. `resume=auto` goes
on with whatever the job's folder holds, or starts there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lightning.errors import UserError
from fer_lightning.runs.folder import has_trained

AUTO = "auto"
HYDRA = ".hydra"
ITS_OWN = ("hydra.sweep.dir", "hydra.run.dir", "hydra.mode", "resume", "allow_changes")
"""Overrides of the first start that do not carry over to the next one."""


def expand(arguments: Sequence[str]) -> list[str]:
    """The command line that `resume=<folder>` stands for; any other one as it is.

    What else was typed comes last, and so goes first. The working directory becomes the one of the first start, which
    relative paths belong to.

    Raises:
        UserError: the folder holds neither a run nor a sweep.
    """
    found = [a for a in arguments if re.match(r"\+{0,2}resume=", a)]
    if not found or found[-1].partition("=")[2] in (AUTO, "null", ""):
        return list(arguments)
    rest = [a for a in arguments if a not in found]
    folder = Path(found[-1].partition("=")[2].strip("'\"")).expanduser().absolute()
    if (folder / "multirun.yaml").is_file():
        hydra = OmegaConf.load(folder / "multirun.yaml").hydra
        kept = [*_typed(hydra.overrides.task), *_typed(hydra.overrides.hydra)]
        mode, place = ["--multirun"], f"hydra.sweep.dir={_quoted(folder)}"
    elif (folder / HYDRA / "overrides.yaml").is_file():
        hydra = OmegaConf.load(folder / HYDRA / "hydra.yaml").hydra
        kept = _typed(OmegaConf.load(folder / HYDRA / "overrides.yaml"))
        mode, place = [], f"hydra.run.dir={_quoted(folder)}"
    else:
        raise UserError(
            f"resume={folder}: there is no run and no sweep; name a folder like outputs/<date>/<time> or "
            "multirun/<date>/<time>"
        )
    home = OmegaConf.select(hydra, "runtime.cwd", throw_on_missing=False)
    if home and Path(home).is_dir():
        os.chdir(home)
    kept = [k for k in kept if k.lstrip("+~").partition("=")[0] not in ITS_OWN]
    return [str(word) for word in (*mode, *_flags(hydra, rest), *kept, *rest, place, f"resume={AUTO}")]


def _typed(overrides: Any) -> list[str]:
    """Overrides as they were typed: reading the items of a ListConfig would resolve `${seed}`."""
    return [str(override) for override in OmegaConf.to_container(overrides)]  # type: ignore[union-attr]


def keep_command(run_dir: Path, cfg: DictConfig) -> None:
    """Write `.hydra/` into a run folder: what Hydra would write, but never over what the run was started with."""
    folder = run_dir / HYDRA
    if (folder / "overrides.yaml").exists() and has_trained(run_dir):
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    hydra = OmegaConf.create({"hydra": HydraConfig.get()})
    OmegaConf.save(own, folder / "config.yaml")
    OmegaConf.save(hydra, folder / "hydra.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, folder / "overrides.yaml")


def _flags(hydra: Any, rest: Sequence[str]) -> list[str]:
    """Hydra's own options of the first start that decide what a config is made of."""
    flags = []
    name = OmegaConf.select(hydra, "job.config_name", throw_on_missing=False)
    if name and name != "config" and not any(a.startswith(("--config-name", "-cn")) for a in rest):
        flags += ["--config-name", name]
    for source in OmegaConf.select(hydra, "runtime.config_sources", throw_on_missing=False) or []:
        if source.provider == "command-line" and not any(a.startswith(("--config-dir", "-cd")) for a in rest):
            flags += ["--config-dir", source.path]
    return flags


def _quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
