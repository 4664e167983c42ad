"""Starting from trained weights, on the same classes or others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fer_lightning.data.table import FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference import zoo
from fer_lightning.inference.load import load
from fer_lightning.inference.predictor import NetworkMember
from fer_lightning.models.network import FaceNetwork

HEAD = "head."
"""Prefix of the head's parameters in a network's state dict."""


class Source(NamedTuple):
    """A trained network.

    Attributes:
        path: of its run or file.
        model: node of the config group `model`.
        classes: in label order.
        network: with its weights, on the CPU.
    """

    path: Path
    model: Mapping[str, Any]
    classes: tuple[str, ...]
    network: FaceNetwork


def check(settings: Mapping[str, Any]) -> None:
    """Raises UserError for a value of the config group `finetune` that is out of its range or contradicts another."""
    freeze, decay, factor = (
        settings["finetune"][key] for key in ("freeze_epochs", "layer_decay", "backbone_lr_factor")
    )
    epochs, max_time = settings["trainer"]["max_epochs"], settings["trainer"]["max_time"]
    if not 0 < decay <= 1:
        raise UserError(f"finetune.layer_decay={decay}: use a factor above 0 and up to 1, which gives layers one rate")
    if not 0 < factor < float("inf"):
        raise UserError(f"finetune.backbone_lr_factor={factor}: use a positive number, such as 0.1")
    for key, value in (("layer_decay", decay), ("backbone_lr_factor", factor)):
        if value != 1 and "lr" not in settings["optimizer"]:
            raise UserError(f"finetune.{key}={value} needs a rate to start from: set optimizer.lr")
    if freeze == 0:
        return
    if not 0 < freeze < epochs:
        raise UserError(
            f"finetune.freeze_epochs={freeze}: use 0, or fewer than trainer.max_epochs={epochs}, so that the backbone "
            "is trained after them"
        )
    every = settings["trainer"]["check_val_every_n_epoch"]
    if epochs // every * every <= freeze:
        raise UserError(
            f"finetune.freeze_epochs={freeze} of {epochs} epochs: with trainer.check_val_every_n_epoch={every} no "
            "validation follows to choose a checkpoint by"
        )
    if settings["imbalance"]["retrain_after"] is not None:
        raise UserError(
            f"finetune.freeze_epochs={freeze} contradicts imbalance={settings['imbalance']['name']}, which has stages "
            "of its own: leave one of them out"
        )
    if max_time is not None or settings["trainer"]["max_steps"] > 0:
        raise UserError(
            f"finetune.freeze_epochs={freeze} contradicts trainer.max_time and trainer.max_steps: limit "
            "trainer.max_epochs instead"
        )
    if settings["init_from"] is None and not settings["model"].get("pretrained"):
        raise UserError(
            f"finetune.freeze_epochs={freeze} would train a head on random features: add init_from=<run or file>, or "
            "set it to 0"
        )


def read(init_from: str, *, trust: bool) -> Source:
    """The network of a run, a model file or a model in the package.

    Args:
        init_from: its path or name.
        trust: allow networks of the user's own.

    Raises:
        UserError: there is none, or it is not one network with weights.
    """
    loaded = load(init_from, accelerator="cpu", trust=trust)
    members = loaded.members
    if len(members) != 1 or not isinstance(members[0], NetworkMember):
        what = f"{len(members)} networks" if len(members) > 1 else "an ONNX graph"
        raise UserError(f"init_from={init_from}: {what}; name one run or .safetensors file")
    return Source(loaded.path, loaded.configs[0].model, loaded.classes, members[0].network)


def adopted(settings: Mapping[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """The absolute path of `init_from`, and its network as `model`.

    Args:
        settings: the resolved config.
        typed: the overrides of the command line. `model=…` there keeps the configured network, into which the weights
            then have to fit; `model.<key>=…` is set in the adopted one.

    Raises:
        UserError: see `read`.
    """
    path = zoo.find(Path(settings["init_from"]).expanduser())
    source = read(str(path), trust=settings["trust"])
    return {"init_from": str(path.absolute()), "model": _changed(source.model, settings["model"], typed)}


def kept(settings: Mapping[str, Any], resumed: Mapping[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """What `adopted` sets, from the resumed run, since its `init_from` may be gone. Overrides typed since are applied,
    so that a change is noticed."""
    init_from = resumed.get("init_from")
    if init_from is None or Path(init_from).exists():
        init_from = str(zoo.find(Path(settings["init_from"]).expanduser()).absolute())
    return {"init_from": init_from, "model": _changed(resumed["model"], settings["model"], typed)}


def _changed(model: Mapping[str, Any], configured: Mapping[str, Any], typed: Sequence[str]) -> Mapping[str, Any]:
    """The node of a network with what was typed in it."""
    keys = [override.lstrip("+~").partition("=")[0] for override in typed]
    if "model" in keys:
        model = configured
    changed = dict(model)
    for key in (key.removeprefix("model.") for key in keys if key.startswith("model.")):
        _set(changed, key, configured)
    return changed | {"pretrained": False} if "pretrained" in changed else changed


def _set(model: dict[str, Any], key: str, configured: Mapping[str, Any]) -> None:
    """Copy the value of a dotted key."""
    first, _, rest = key.partition(".")
    if rest:
        model[first] = dict(model.get(first) or {})
        _set(model[first], rest, configured[first])
    elif first in configured:
        model[first] = configured[first]


def initialise(network: FaceNetwork, init_from: str | None, faces: FaceTable, *, trust: bool) -> str:
    """Give an untrained network its first weights: those of `init_from`, or those its backbone was pretrained with.

    The head is taken over if it has the same classes in the same order.

    Returns:
        What was done, empty for random weights.

    Raises:
        UserError: the weights do not fit, or cannot be read.
    """
    if init_from is None:
        load_pretrained = getattr(network.backbone, "load_pretrained", None)
        if load_pretrained is None or not network.backbone.pretrained:
            return ""
        try:
            load_pretrained()
        except ValueError as error:
            raise UserError(f"model.{error}") from error
        return f"pretrained weights of {network.backbone.name}"
    source = read(init_from, trust=trust)
    state, own = source.network.state_dict(), network.state_dict()
    same = source.classes == faces.classes and _shapes(state, HEAD) == _shapes(own, HEAD)
    wrong = _shapes(state, "backbone.").items() ^ _shapes(own, "backbone.").items()
    if wrong:
        name, shape = sorted(wrong)[0]
        raise UserError(
            f"init_from={init_from}: its weights do not fit the configured network ({name} {list(shape)}); leave "
            "model=… out to take over its network as well"
        )
    network.load_state_dict({**own, **{n: v for n, v in state.items() if same or not n.startswith(HEAD)}})
    return f"weights of {init_from}, " + ("head included" if same else "with a new head")


def _shapes(state: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith(prefix)}
