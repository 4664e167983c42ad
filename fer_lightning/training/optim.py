"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

Schedule = tuple[LRScheduler, Literal["step", "epoch"]]
"""A scheduler and how often it steps."""


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels; none for biases and norms, which it only disturbs (He et al. 2019,
    arXiv:1812.01187, section 3.1)."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def cosine(optimizer: Optimizer, steps: int, mode: str, warmup: float = 0.05, final: float = 0.0) -> Schedule:
    """Linear warm-up over the fraction `warmup` of the steps, then half a cosine down to `final` × the rate
    (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    _check_warmup(warmup)
    warmup_steps = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return _half_cosine(1, final, (step - warmup_steps) / max(1, steps - warmup_steps))

    return LambdaLR(optimizer, factor), "step"


def onecycle(
    optimizer: Optimizer, steps: int, mode: str, warmup: float = 0.3, start: float = 0.04, final: float = 4e-5
) -> Schedule:
    """Up to the rate by a cosine over the fraction `warmup` of the steps, then down to `final` × the rate (Smith &
    Topin 2018, arXiv:1708.07120); `start` and `final` are fractions of the highest rate."""
    _check_warmup(warmup)
    peak = max(0.0, warmup * (steps + 1) - 1)

    def factor(step: int) -> float:
        if step <= peak:
            return _half_cosine(start, 1, step / peak if peak else 1)
        return _half_cosine(1, final, (step - peak) / (steps - peak))

    return LambdaLR(optimizer, factor), "step"


def plateau(optimizer: Optimizer, steps: int, mode: str, factor: float = 0.5, patience: int = 5) -> Schedule:
    """The rate × `factor` whenever the monitored metric has not improved for more than `patience` validations."""
    return ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience), "epoch"  # type: ignore[arg-type]


def constant(optimizer: Optimizer, steps: int, mode: str, warmup: float = 0.0) -> Schedule:
    """One rate, after a linear warm-up over the fraction `warmup` of the steps."""
    return cosine(optimizer, steps, mode, warmup, final=1.0)


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def _check_warmup(warmup: float) -> None:
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup is a fraction of the steps, from 0 up to 1, not {warmup}")
