"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from fer_lightning.models.network import FaceNetwork

HEAD = "head."
"""Prefix of the head's parameters in a network."""

EMBEDDINGS = ("pos_embed", "cls_token")
"""Names, also timm's, of parameters that are matrices in their shape only."""

Schedule = tuple[LRScheduler, Literal["step", "epoch"]]
"""A scheduler and how often it steps."""


def parameter_groups(
    network: FaceNetwork,
    weight_decay: float,
    lr: float | None = None,
    layer_decay: float = 1.0,
    backbone_lr_factor: float = 1.0,
    *,
    mark_head: bool = False,
) -> list[dict[str, Any]]:
    """The parameters to train, with their weight decay and learning rate.

    Weight decay is for matrices and kernels, not for biases and norms, which it only disturbs (He et al. 2019,
    arXiv:1812.01187, section 3.1), nor for the embeddings of positions and of the class token.

    Args:
        network: its head is the last layer.
        weight_decay: of matrices and kernels.
        lr: of the last layer; None for the optimizer's default, if all layers have one rate.
        layer_decay: the rate of a layer as a multiple of that of the next one (Clark et al. 2020, arXiv:2003.10555,
            appendix A). Each group has its own rate, which every schedule multiplies.
        backbone_lr_factor: multiplies the rates of all layers but the head.
        mark_head: give the head, and with it embeddings, a group of its own, with the key `head` set.

    Raises:
        ValueError: rates of layers need one to start from.
    """
    one_rate = layer_decay == 1 and backbone_lr_factor == 1
    if not one_rate and lr is None:
        raise ValueError("finetune.layer_decay and finetune.backbone_lr_factor need optimizer.lr")
    layers = {} if one_rate else layers_of(network)
    last = max(layers.values(), default=0)
    groups: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            below = 0 if one_rate else last - layers[name]
            embedding = name.rpartition(".")[2] in EMBEDDINGS
            head = mark_head and (name.startswith(HEAD) or embedding)
            groups.setdefault((below, parameter.ndim <= 1 or embedding, head), []).append(parameter)
    return [
        {"params": groups[below, spared, head], "weight_decay": 0.0 if spared else weight_decay}
        | ({} if lr is None or one_rate else {"lr": lr * layer_decay**below * (backbone_lr_factor if below else 1)})
        | ({"head": True} if head else {})
        for below, spared, head in sorted(groups)
    ]


def layers_of(network: FaceNetwork) -> dict[str, int]:
    """The layer of each parameter, counted from 0 at the input; the head is the last one.

    A backbone may define it in a method `layer_of`; else each of its children is one layer.
    """
    names = [name for name, _ in network.backbone.named_parameters()]
    children = {name: i for i, name in enumerate(dict.fromkeys(name.partition(".")[0] for name in names))}
    layer_of = getattr(network.backbone, "layer_of", lambda name: children[name.partition(".")[0]])
    layers = {f"backbone.{name}": int(layer_of(name)) for name in names}
    head = max(layers.values(), default=0) + 1
    return layers | {name: head for name, _ in network.named_parameters() if name not in layers}


def cosine(optimizer: Optimizer, steps: int, mode: str, warmup: float = 0.05, final: float = 0.0) -> Schedule:
    """Linear warm-up over the fraction `warmup` of the steps, then half a cosine down to `final` × the rate
    (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    _check_fractions(warmup, final=final)
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
    _check_fractions(warmup, start=start, final=final)
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


def _check_fractions(warmup: float, **of_the_rate: float) -> None:
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup is a fraction of the steps, from 0 up to 1, not {warmup}")
    for name, fraction in of_the_rate.items():
        if not 0 <= fraction <= 1:
            raise ValueError(f"schedule.{name} is a fraction of optimizer.lr, from 0 to 1, not {fraction}")
