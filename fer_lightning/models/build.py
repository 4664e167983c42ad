"""From a config node to a network, without Hydra: for model files, which may come from a stranger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.preprocessing import Preprocessing

PACKAGE = "fer_lightning.models."
TARGET = "_target_"


def own_backbone(node: Mapping[str, Any], **extra: Any) -> nn.Module:
    """The backbone of a config node, if it is a network that a module of `fer_lightning.models` defines.

    Raises:
        ValueError: it is not.
    """
    module_name, _, name = str(node.get(TARGET)).rpartition(".")
    arguments = {key: value for key, value in node.items() if key != TARGET} | extra
    # Names are compared before anything is imported, and a name that a module merely imports is not its own.
    if module_name.startswith(PACKAGE) and all(part.isidentifier() for part in module_name.split(".")):
        try:
            found = getattr(import_module(module_name), name, None)
        except ImportError:
            found = None
        if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module_name:
            return found(**arguments)
    raise ValueError(f"{node.get(TARGET)!r} is not a network of this project")


def check_layers(node: Mapping[str, Any], weights: int) -> None:
    """Raises ValueError for a backbone with more layers than there are weights: a small file of a stranger could
    otherwise ask for a network that takes minutes to build, even without memory for its weights."""
    convs = node.get("convs")
    layers = [node.get("depth"), *(convs if isinstance(convs, list | tuple) else [convs])]
    if sum(n for n in layers if isinstance(n, int | float)) > weights:
        raise ValueError("its network has more layers than weights")


def check_weights(
    node: Mapping[str, Any],
    num_classes: int,
    cosine_scale: float | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises ValueError if a network of this project would not have these weights, before memory is taken for it.

    Args:
        node, num_classes, cosine_scale: as for `build`.
        shapes: of the weights, by their names in the network's state dict.
    """
    check_layers(node, len(shapes))
    with torch.device("meta"):
        state = build(node, num_classes, cosine_scale).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name)):
        raise ValueError(f"the tensor {wrong[0][:80]!r} does not fit its network")


def build(
    node: Mapping[str, Any],
    num_classes: int,
    cosine_scale: float | None = None,
    *,
    backbone: Callable[..., nn.Module] = own_backbone,
) -> FaceNetwork:
    """The network of the config group `model`.

    Args:
        node: of the backbone, which is given `in_channels`; `preprocessing` and `dropout` are the network's own. What
            `preprocessing` leaves open is taken from the backbone's attribute of that name, if it has one.
        num_classes: number of logits.
        cosine_scale: scale of a cosine head; None for a linear head.
        backbone: makes the backbone from the rest of the node and `in_channels`.

    Raises:
        TypeError, ValueError: unknown settings, or a value out of its range.
    """
    own = dict(node)
    dropout, settings = own.pop("dropout", 0.0), own.pop("preprocessing", None) or {}
    given = {name: value for name, value in settings.items() if value is not None}
    body = backbone(own, in_channels=Preprocessing(**given).channels)
    preprocessing = Preprocessing(**(getattr(body, "preprocessing", {}) | given))
    return FaceNetwork(body, num_classes, preprocessing, dropout, cosine_scale)
