"""The devices that a job requests, and whether this machine has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fer_lightning.errors import UserError

AUTO = ("auto", -1, "-1")


def count(trainer: Mapping[str, Any]) -> int:
    """The number of devices of this machine that the `trainer` group requests.

    Raises:
        UserError: a device that does not exist, or an invalid value.
    """
    accelerator, typed = kind(trainer), f"trainer.devices={trainer['devices']}"
    wanted = _requested(trainer["devices"])
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(accelerator)  # on the CPU any number of processes
    if wanted is None:
        return there or 1
    if isinstance(wanted, list):
        if there is None:
            raise UserError(f"{typed}: a CPU has no numbered devices; give a number of processes")
        absent = [i for i in wanted if not 0 <= i < there]
        if absent or not wanted or len(set(wanted)) < len(wanted):
            what = f"there is no device {absent[0]}" if absent else "name each device once, and at least one"
            raise UserError(f"{typed}: {what}; {_there(accelerator, there)}")
        return len(wanted)
    if wanted < 1:
        raise UserError(f"{typed}: use a number from 1, a list of GPUs such as [0,2], or auto")
    if there is not None and wanted > there:
        raise UserError(f"{typed}: {_there(accelerator, there)}; use trainer.devices={there} or auto")
    return wanted


def chosen(trainer: Mapping[str, Any], processes: int) -> int | list[int]:
    """What Lightning's Trainer of one of `processes` local ranks takes as `devices`."""
    wanted = _requested(trainer["devices"])
    return wanted if isinstance(wanted, list) else processes


def kind(trainer: Mapping[str, Any], option: str | None = None) -> str:
    """ "cpu", "cuda" or "mps": the type of device that the `trainer` group selects on this machine.

    Args:
        trainer: the group.
        option: of a command line that has set it, for messages.

    Raises:
        UserError: an unknown accelerator, or one that this machine does not have.
    """
    wanted = trainer["accelerator"]
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    there = "cuda" if has_cuda else "mps" if has_mps else None
    if wanted == "cpu":
        return "cpu"
    if wanted == "auto":
        return there or "cpu"
    if wanted not in ("gpu", "cuda", "mps"):
        raise UserError(f"{f'{option} ' if option else 'trainer.accelerator='}{wanted}: use auto, cpu or gpu")
    given = f"{option} " if option else "accelerator="
    if there is None or (wanted == "cuda" and not has_cuda) or (wanted == "mps" and not has_mps):
        raise UserError(
            f"{given}{wanted}: PyTorch {torch.__version__} sees no {'Apple ' if wanted == 'mps' else ''}GPU here; "
            f"use {given}cpu or auto, or install a build of PyTorch that fits the GPU's driver"
        )
    return there if wanted == "gpu" else str(wanted)


def _requested(value: Any) -> int | list[int] | None:
    """A number of devices, or their indices; None for all of them, 0 for an invalid value."""
    if value in AUTO:
        return None
    if isinstance(value, str) and "," in value:
        value = [part for part in value.split(",") if part.strip()]
    try:
        return [_whole(i) for i in value] if isinstance(value, list) else _whole(value)
    except (TypeError, ValueError):
        return 0


def _whole(number: Any) -> int:
    """A whole number from a config value; int() would truncate 1.5 and accept true."""
    if isinstance(number, bool | float):
        raise TypeError
    return int(number)


def _there(accelerator: str, number: int) -> str:
    name = "GPU" if accelerator == "cuda" else "Apple GPU"
    return f"there {'is' if number == 1 else 'are'} {number} {name}{'' if number == 1 else 's'} here"
