"""Options of config groups that are typed beside an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fer_lightning.config import CONF
from fer_lightning.config.messages import ONE_OPTION
from fer_lightning.errors import UserError

TUNED = ("augment", "callbacks", "mix", "model", "optimizer", "schedule")
"""Groups whose values an experiment chooses for the option of its own choice."""


def with_own_values(cfg: DictConfig, typed: Sequence[str]) -> DictConfig:
    """The config in which an option that replaces an experiment's has its own values instead of the experiment's.

    Hydra would set the experiment's rate for AdamW in SGD, and its stem of a ResNet in a VGG, which has none.

    Args:
        cfg: as Hydra composed it.
        typed: the overrides of the command line.

    Raises:
        UserError: several options for a group of which a job has one.
    """
    chosen = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in typed)}
    for group in ONE_OPTION:
        if chosen.get(group, "").startswith("["):
            raise UserError(f"{group}={chosen[group]}: name one option; add -m, without brackets, for a job with each")
    groups = [group for group in TUNED if group in chosen]
    if not groups or "experiment" not in chosen:
        return cfg
    of_experiment, usual = _choices([f"experiment={chosen['experiment']}"]), _choices([])
    for group in groups:
        if of_experiment[group] in (usual[group], chosen[group]):  # not its choice, or the same
            continue
        of_group = [o for o in typed if o.lstrip("+~").partition("=")[0].split(".")[0] == group]
        OmegaConf.update(cfg, group, _composed(of_group)[group], merge=False)
    return cfg


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """The chosen option of each group."""
    choices: dict[str, str] = OmegaConf.to_container(_composed(overrides, hydra=True).hydra.runtime.choices)  # type: ignore[assignment]
    return choices


def _composed(overrides: Sequence[str], *, hydra: bool = False) -> Any:
    """The config that these overrides make, with those folders of options that this process has."""
    if GlobalHydra.instance().is_initialized():
        return compose("config", list(overrides), return_hydra_config=hydra)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)
