"""Names and types of config values against the signatures of the targets that they are for.

Hydra checks neither, and a target may be instantiated long after the job has started.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from hydra.utils import get_object
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from fer_lightning.config.instantiate import TARGET
from fer_lightning.config.messages import near
from fer_lightning.errors import UserError
from fer_lightning.models.preprocessing import Preprocessing

GROUPS = ("augment", "callbacks", "imbalance", "logger", "mix", "model", "optimizer", "schedule")
"""Config groups that hold targets."""

OF_NETWORK = {"dropout": float, "preprocessing": dict}
"""Keys of the group `model` that are the network's, not the backbone's."""

REMEDIES = {
    "float": "use a number",
    "int": "use a whole number",
    "bool": "use true or false",
    "list": "use a list, as in [1]",
    "tuple": "use a list, as in [1]",
    "is_instance_of": "use a list, as in [1]",
    "dict": "use names and values, as in {name: 1}",
}
"""By the first word of pydantic's types of errors; signatures here ask for instances of `Sequence` only."""


def check(settings: Mapping[str, Any]) -> None:
    """Look for values of the wrong type, and for names that a target does not have.

    Args:
        settings: the resolved config, as plain containers.

    Raises:
        UserError: the first problem found.
    """
    for group in ("callbacks", "logger"):
        for name, node in (settings.get(group) or {}).items():
            if node is not None and not isinstance(node, Mapping):
                raise UserError(
                    f"{group}.{name}={_shown(node)}: use names and values with a {TARGET}, or {group}.{name}=null to "
                    "leave it out"
                )
    for group in GROUPS:
        if settings.get(group):
            _check_node(group, settings[group])


def _check_node(key: str, node: Mapping[str, Any]) -> None:
    others: Mapping[str, Any] = {}
    if key == "model":
        others = OF_NETWORK
        _check_types(key, {name: node[name] for name in others if name in node}, others)
        of_faces = {name: value for name, value in (node.get("preprocessing") or {}).items() if value is not None}
        _check_values("model.preprocessing", of_faces, Preprocessing)
    if node.get(TARGET):
        try:
            target = get_object(node[TARGET])
        except Exception:  # instantiating it will say why
            return
        _check_values(key, {n: v for n, v in node.items() if not n.startswith("_") and n not in others}, target)
    for name, value in node.items():
        if isinstance(value, Mapping) and (TARGET in value or not node.get(TARGET)):
            _check_node(f"{key}.{name}", value)


def _check_values(key: str, values: Mapping[str, Any], target: Any) -> None:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # of a class written in C
        return
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if unknown := [name for name in values if name not in parameters and not takes_any]:
        raise UserError(
            f"{key}.{unknown[0]}: {target.__name__} has no such setting{near(unknown[0], list(parameters))} leave it "
            f"out, or remove it with ~{key}.{unknown[0]}"
        )
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # annotations for type checkers alone
        hints = {}
    _check_types(key, values, hints)


def _check_types(key: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name not in hints or (isinstance(value, Mapping) and TARGET in value):
            continue
        try:
            TypeAdapter(hints[name], config={"arbitrary_types_allowed": True}).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            kind = next((kind for kind in REMEDIES if first["type"].startswith(kind)), None)
            at = first["loc"][:1] if isinstance(value, Mapping | list) else ()
            part = "".join(f"[{index}]" if isinstance(index, int) else f".{index}" for index in at)
            remedy = REMEDIES[kind] if kind else first["msg"].replace("Input should be", "use")
            raise UserError(f"{key}.{name}{part}={_shown(first['input'])}: {remedy}") from None
        except (PydanticSchemaGenerationError, PydanticUserError):  # a type that pydantic cannot judge
            continue


def _shown(value: Any) -> str:
    """As it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
