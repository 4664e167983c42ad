"""What can be known to be wrong before any data is read or anything trained."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fer_lightning.errors import UserError
from fer_lightning.model.metrics import scores

LOWER_IS_BETTER = ("loss", "ece")


def check(settings: Mapping[str, Any]) -> None:
    """Look for options that contradict each other or this machine.

    Args:
        settings: the resolved config, as plain containers.

    Raises:
        UserError: the first thing found.
    """
    data, trainer = settings["data"], settings["trainer"]
    if data["name"] == "synthetic" and data["path"] is not None:
        raise UserError(f"data.path={data['path']} contradicts data=synthetic, which draws its faces: leave one out")
    if trainer["max_epochs"] < 1 and trainer["max_steps"] < 1:
        raise UserError(f"trainer.max_epochs={trainer['max_epochs']}: 1 at least is needed")
    every, epochs = trainer["check_val_every_n_epoch"], trainer["max_epochs"]
    if settings["callbacks"] and any(settings["callbacks"].values()):  # all of them go by validation
        if trainer["limit_val_batches"] == 0:
            raise UserError("trainer.limit_val_batches=0 leaves callbacks nothing to go by: add callbacks=none")
        if 0 < epochs < every:
            raise UserError(
                f"trainer.check_val_every_n_epoch={every} contradicts trainer.max_epochs={epochs}: there would be no "
                "validation to choose a checkpoint by"
            )
    _check_device(trainer)


def check_monitor(monitor: Mapping[str, str], classes: tuple[str, ...]) -> None:
    """Raises UserError for a metric that validation does not compute, or one that is to go the wrong way."""
    metric, mode = monitor["metric"], monitor["mode"]
    known = [f"val/{name}" for name in ("loss", "ece", *scores(np.zeros((len(classes),) * 2, np.int64), classes))]
    if metric not in known:
        near = difflib.get_close_matches(metric, known, 3, 0.5)
        raise UserError(f"monitor.metric={metric}: no such score; did you mean {' or '.join(near or known[:6])}?")
    right = "min" if metric.rpartition("/")[2] in LOWER_IS_BETTER else "max"
    if mode != right:
        raise UserError(f"monitor.mode={mode} contradicts monitor.metric={metric}: use monitor.mode={right}")


def _check_device(trainer: Mapping[str, Any]) -> None:
    accelerator, devices, precision = (trainer["accelerator"], trainer["devices"], trainer["precision"])
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise UserError(f"trainer.accelerator={accelerator}: there are auto, cpu and gpu")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if accelerator in ("gpu", "cuda") and not has_cuda and not (accelerator == "gpu" and has_mps):
        raise UserError(
            f"accelerator={accelerator}: PyTorch {torch.__version__} sees no GPU here; use accelerator=cpu or auto, or "
            "install a build of PyTorch that fits the GPU's driver"
        )
    if accelerator == "mps" and not has_mps:
        raise UserError("trainer.accelerator=mps: PyTorch sees no Apple GPU here; use accelerator=cpu")
    if devices not in (1, "1", [0], "auto"):
        raise UserError(f"trainer.devices={devices}: this version trains on one device; use trainer.devices=1")
    on_cpu = accelerator == "cpu" or not (has_cuda or has_mps)
    if precision == "16-mixed" and on_cpu:
        raise UserError("precision=fp16 needs a GPU; use precision=bf16 or fp32 on the CPU")
    if precision == "bf16-mixed" and not on_cpu and has_cuda and not torch.cuda.is_bf16_supported():
        raise UserError("precision=bf16: this GPU has no bfloat16; use precision=fp16 or fp32")
