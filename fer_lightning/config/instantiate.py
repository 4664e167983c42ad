"""From config nodes to objects: the only caller of `hydra.utils.instantiate`, and what files may have it call.

Nodes are plain containers, not DictConfigs, so that whatever stores them (hyperparameters, checkpoints) stores plain
values.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fer_lightning.config import CONF
from fer_lightning.errors import UserError, flat

if TYPE_CHECKING:  # `check_targets` runs before torch is needed
    from fer_lightning.models.network import FaceNetwork

LIBRARY_TARGETS = {
    "lightning.pytorch.callbacks": "Callback",
    "lightning.pytorch.loggers": "Logger",
    "torch.optim": "Optimizer",
    "torch.optim.lr_scheduler": "LRScheduler",
}
"""Modules whose public classes a file may name, and the base class that these have in common."""

TARGET = "_target_"


@cache
def own_targets() -> frozenset[str]:
    """This project's targets that a file may name: those that the config groups name.

    They are listed rather than matched by prefix: Hydra resolves dotted paths by `getattr`, so that every function that
    any module imports is reachable below `fer_lightning.`, such as `fer_lightning.app.os.system`.
    """
    texts = (path.read_text(encoding="utf-8") for path in CONF.glob("*/*.yaml"))
    return frozenset(target for text in texts for target in re.findall(rf"{TARGET}: *(fer_lightning\.[\w.]+)", text))


def check_targets(node: Any, *, where: str, trust: bool = False, own: Iterable[str] = ()) -> None:
    """Refuse plain containers from a file that would have Hydra call anything but an allowed target.

    To be called before anything of `node` is instantiated or resolved. Interpolations are refused as well, since a
    resolver can return any node: nothing that this project writes into a run folder has them.

    Args:
        node: nested dicts, lists and values.
        where: the file or folder that `node` was read from, for the message.
        trust: accept everything.
        own: further targets to accept: those that the user typed.

    Raises:
        UserError: a target is not allowed, or a value is an interpolation.
    """
    if trust:
        return
    allowed = own_targets() | set(own)
    for item in _items(node):
        if isinstance(item, str) and "${" in item:
            raise UserError(
                f"{where}: the interpolation {_short(item)} is resolved only for files that you trust: add --trust (or "
                "trust=true to train.py)"
            )
        if not isinstance(item, Mapping) or TARGET not in item:
            continue
        if not (isinstance(item[TARGET], str) and _is_allowed(item[TARGET], allowed)):
            raise UserError(
                f"{where}: the target {_short(item[TARGET])} is not one of this project, and instantiating it may "
                "run any code: if you trust whoever made this folder, add --trust (or trust=true to train.py)"
            )


def targets_in(node: Any) -> set[str]:
    """Every target that plain containers name."""
    targets = (item.get(TARGET) for item in _items(node) if isinstance(item, Mapping))
    return {target for target in targets if isinstance(target, str)}


def _items(node: Any) -> Iterator[Any]:
    """Plain containers and all keys and values below them; not recursive, as a file may nest as deeply as it likes."""
    pending = [node]
    while pending:
        item = pending.pop()
        yield item
        if isinstance(item, Mapping):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            pending += item


def _is_allowed(target: str, allowed: Iterable[str]) -> bool:
    if target in allowed:
        return True
    module_name, _, name = target.rpartition(".")
    if module_name not in LIBRARY_TARGETS:
        return False
    module = importlib.import_module(module_name)
    found, base = getattr(module, name, None), getattr(module, LIBRARY_TARGETS[module_name])
    return name in module.__all__ and inspect.isclass(found) and issubclass(found, base)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


OWN = "fer_lightning."
"""Prefix of this project's targets."""

DEFECTS = (AssertionError, AttributeError, LookupError, NameError)
"""Errors that this project's own targets raise through no fault of the user."""


def network(node: Mapping[str, Any], num_classes: int, cosine_scale: float | None = None) -> FaceNetwork:
    """The network of the config group `model`, see `fer_lightning.models.build.build`.

    Raises:
        UserError: a value is out of its range.
    """
    from fer_lightning.models.build import build

    node = dict(node)
    try:
        return build(node, num_classes, cosine_scale, backbone=partial(_instantiate, "model"))
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}") from error


def named(key: str, nodes: Mapping[str, Any] | None) -> list[Any]:
    """The objects of a dict of named nodes, such as callbacks; a node that is null is left out."""
    return [_instantiate(f"{key}.{name}", node) for name, node in (nodes or {}).items() if node is not None]


def node(key: str, node: Mapping[str, Any] | None, **extra: Any) -> Any:
    """The object of one node, or None for null or an empty one."""
    return _instantiate(key, node, **extra) if node else None


def call(key: str, node: Mapping[str, Any], *arguments: Any) -> Any:
    """The object of one node, whose target takes positional arguments that are no config values, such as parameters."""
    try:
        return _instantiate(key, node, _partial_=True)(*arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and str(node[TARGET]).startswith(OWN):
            raise  # PyTorch's optimizers refuse settings with it, this project's do not
        raise UserError(f"{key}: {error}") from error


def _instantiate(key: str, node: Mapping[str, Any], **extra: Any) -> Any:
    if TARGET not in node:
        raise UserError(
            f"{key}: has settings and no {TARGET}; choose an option that it belongs to, or remove it: ~{key}"
        )
    try:
        return instantiate(dict(node), **extra, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError) or (isinstance(cause, DEFECTS) and str(node[TARGET]).startswith(OWN)):
            raise cause from error
        if isinstance(cause, ImportError) and not str(node[TARGET]).startswith(OWN):
            raise UserError(
                f"{key}: {node[TARGET]} cannot be imported ({flat(cause)}): install its package, or add the folder "
                "that holds it to PYTHONPATH"
            ) from error
        reason = str(cause) if isinstance(cause, ValueError | TypeError) else str(error).replace("\n", " ")
        raise UserError(f"{key}: {reason}") from error
