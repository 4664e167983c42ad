"""Options of config groups that are typed beside an experiment."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from fer_lightning.config.messages import ONE_OPTION, composed, composition_error
from fer_lightning.errors import UserError, flat

TUNED = ("augment", "callbacks", "mix", "model", "optimizer", "schedule")
"""Groups whose values an experiment chooses for the option of its own choice."""


def with_own_values(cfg: DictConfig, typed: Sequence[str]) -> DictConfig:
    """The config in which an option that replaces an experiment's has its own values instead of the experiment's.

    Hydra would set the experiment's rate for AdamW in SGD, and its stem of a ResNet in a VGG, which has none.

    Args:
        cfg: as Hydra composed it.
        typed: the overrides of the command line.

    Raises:
        UserError: several options for a group of which a job has one, or a value that the option does not have.
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
        of_group = [o for o in typed if o.lstrip("+").partition("=")[0].split(".")[0] == group]
        try:
            node = composed(of_group)[group]
        except HydraException as error:  # such as a key of the experiment's option
            raise UserError(composition_error(error, of_group) or flat(error)) from error
        for override in typed:
            if override.startswith(f"~{group}."):
                _remove(node, override.partition("=")[0].removeprefix(f"~{group}."))
        OmegaConf.update(cfg, group, node, merge=False)
    return cfg


def _remove(node: DictConfig, key: str) -> None:
    """Remove what `~group.key` names, which the experiment may have set and its own option not have."""
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(node, parent) if parent else node
    if isinstance(holder, DictConfig):
        with open_dict(holder):
            holder.pop(name, None)


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """The chosen option of each group."""
    choices: dict[str, str] = OmegaConf.to_container(composed(overrides, hydra=True).hydra.runtime.choices)  # type: ignore[assignment]
    return choices
