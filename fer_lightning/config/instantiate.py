"""From config nodes to objects: the only caller of `hydra.utils.instantiate`.

Nodes come as plain containers, not DictConfigs, so that whatever keeps them (hyperparameters, checkpoints) keeps plain
values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fer_lightning.errors import UserError
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.preprocessing import Preprocessing


def network(node: Mapping[str, Any], num_classes: int, cosine_scale: float | None = None) -> FaceNetwork:
    """The network of the config group `model`.

    Args:
        node: of the backbone, which is given `in_channels`; `preprocessing` and `dropout` are the network's own.
        num_classes: number of logits.
        cosine_scale: scale of a cosine head; None for a linear head.

    Raises:
        UserError: a value is out of its range.
    """
    own = dict(node)
    dropout, settings = own.pop("dropout", 0.0), own.pop("preprocessing", None) or {}
    try:
        preprocessing = Preprocessing(**settings)
        backbone = _instantiate("model", own, in_channels=preprocessing.channels)
        return FaceNetwork(backbone, num_classes, preprocessing, dropout, cosine_scale)
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}") from error


def loss(node: Mapping[str, Any], class_counts: Sequence[int]) -> nn.Module:
    """The loss: logits (B, C) and labels (B,), or probabilities (B, C), to a scalar; knows the training images per
    class."""
    return _instantiate("imbalance.loss", node, class_counts=list(class_counts))  # type: ignore[no-any-return]


def optimizer(node: Mapping[str, Any], parameters: Iterable[Any]) -> Optimizer:
    """The optimizer over parameter groups that carry their own weight decay."""
    return _call("optimizer", node, parameters)  # type: ignore[no-any-return]


def schedule(node: Mapping[str, Any], optimizer: Optimizer, steps: int, mode: str) -> tuple[LRScheduler, str]:
    """The learning-rate schedule over a number of optimizer steps, and whether it steps each `step` or `epoch`."""
    return _call("schedule", node, optimizer, steps, mode)  # type: ignore[no-any-return]


def named(key: str, nodes: Mapping[str, Any] | None) -> list[Any]:
    """The objects of a dict of named nodes, such as callbacks; a node that is null is left out."""
    return [_instantiate(f"{key}.{name}", node) for name, node in (nodes or {}).items() if node is not None]


def node(key: str, node: Mapping[str, Any] | None, **extra: Any) -> Any:
    """The object of one node, or None for null or an empty one."""
    return _instantiate(key, node, **extra) if node else None


def _call(key: str, node: Mapping[str, Any], *arguments: Any) -> Any:
    """The node's target with positional arguments that are no config values and must not be copied."""
    try:
        return _instantiate(key, node, _partial_=True)(*arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {error}") from error


def _instantiate(key: str, node: Mapping[str, Any], **extra: Any) -> Any:
    try:
        return instantiate(dict(node), **extra, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        reason = str(cause) if isinstance(cause, ValueError | TypeError) else str(error).replace("\n", " ")
        raise UserError(f"{key}: {reason}") from error


def check_targets(node: Any, *, where: str, trust: bool = False) -> None:
    """Placeholder."""
