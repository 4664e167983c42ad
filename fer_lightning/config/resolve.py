"""From the composed config to plain containers without interpolations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config import devices
from fer_lightning.config.messages import value_error
from fer_lightning.config.options import with_own_values
from fer_lightning.config.precision import ALIASES, AUTO, FP16, choose_precision
from fer_lightning.data.quality.cleaning import digest
from fer_lightning.data.readers.remote import is_url
from fer_lightning.errors import UserError


def resolve(cfg: DictConfig, resumed: Mapping[str, Any] | None = None, *, typed: Sequence[str] = ()) -> dict[str, Any]:
    """The config with its interpolations filled in, as plain containers.

    Args:
        cfg: as Hydra composed it.
        resumed: the resolved config of the run that is resumed, if any, whose choice for `precision=auto` stays.
        typed: the overrides of the command line.

    Raises:
        UserError: an interpolation cannot be resolved, a file is missing, or there is no such accelerator.
    """
    cfg = with_own_values(cfg, typed)
    try:
        settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(value_error(error)) from error
    data, trainer = settings["data"], settings["trainer"]
    if settings["augment"] and settings["augment"].get("_target_", "") is None:
        settings["augment"] = {}
    for key in ("path", "votes", "relabel", "cache_dir"):
        if data[key] and not is_url(data[key]):  # so that the run can be evaluated from another folder
            data[key] = os.path.abspath(os.path.expanduser(data[key]))  # noqa: PTH111 (Path's raises without a home)
        data[key] = data[key] or None  # "data.path=$FER2013" where the variable is not set is not this folder
    # So that a run whose file has changed since is not resumed with other labels.
    data["relabel_digest"] = digest(data["relabel"]) if data["relabel"] else None
    if trainer["precision"] == AUTO:
        chosen = (resumed or {}).get("trainer", {}).get("precision")
        trainer["precision"] = chosen or choose_precision(devices.kind(trainer))
    trainer["precision"] = ALIASES.get(str(trainer["precision"]), trainer["precision"])
    if trainer["precision"] == FP16 and trainer["gradient_clip_val"] and "fused" in settings["optimizer"]:
        settings["optimizer"]["fused"] = False  # it would unscale gradients itself, too late to clip them
    return settings
