"""Model files: weights as safetensors, and everything that predicting needs as one JSON in the metadata.

A file is read without pickle and without Hydra: tensors by safetensors, the description by a strict schema; networks
are those that `fer_lightning.models` defines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fer_lightning.errors import UserError, flat
from fer_lightning.inference.description import KEY, Description, MemberConfig, Precision, parse
from fer_lightning.models.build import build, check_layers
from fer_lightning.models.network import FaceNetwork
from fer_lightning.report.files import write_atomically

DIGEST = "fer_lightning_digest"
"""Key of a digest of the description and the tensors: a flipped bit would go unnoticed otherwise."""


SCALE = ":scale"
"""Ends the name of the scales of an int8 tensor."""


def pack(networks: Sequence[FaceNetwork], precision: Precision) -> dict[str, Tensor]:
    """The tensors of a model file.

    Convolutions and matrices are stored in `precision`, for int8 as integers from -127 to 127 with one scale for each
    index of the first dimension, the output channel; what normalises and shifts features is small and stays in float32.

    Args:
        networks: the members.
        precision: fp32, fp16 or int8.
    """
    tensors = {}
    for i, network in enumerate(networks):
        for name, tensor in _weights(network).items():
            tensor = tensor.detach().cpu().contiguous()
            if tensor.ndim > 1 and precision == "int8":
                scale = tensor.flatten(1).abs().amax(1).clamp_min(1e-30) / 127  # not 0 for a channel of zeros
                tensors[f"{i}.{name}{SCALE}"] = scale
                tensor = (tensor / _over(scale, tensor)).round().to(torch.int8)
            elif tensor.ndim > 1 and precision == "fp16":
                tensor = tensor.half()
            tensors[f"{i}.{name}"] = tensor
    return tensors


def unpack(tensors: Mapping[str, Tensor], networks: Sequence[FaceNetwork]) -> None:
    """Load the tensors of a model file into its networks, in float32."""
    for i, network in enumerate(networks):
        state = {}
        for name in _weights(network):
            state[name] = tensors[f"{i}.{name}"].float()
            if (scale := tensors.get(f"{i}.{name}{SCALE}")) is not None:
                state[name] *= _over(scale, state[name])
        network.load_state_dict(state, strict=False)  # without counters, which only training needs


def _over(scale: Tensor, tensor: Tensor) -> Tensor:
    """Scales (C,) as (C, 1, …), to multiply a tensor (C, …)."""
    return scale.reshape(-1, *[1] * (tensor.ndim - 1))


def write(path: Path, description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Write a model file, atomically.

    Args:
        path: the file.
        description: of the members.
        tensors: of `pack`, in the precision of the description.

    Raises:
        OSError: the file cannot be written.
    """
    text = description.model_dump_json()
    write_atomically(path, save(dict(tensors), {KEY: text, DIGEST: _digest(text, tensors)}))


def check_buildable(members: Sequence[MemberConfig], n_classes: int, path: Path) -> None:
    """Raises UserError for a network that no model file can hold, as only its author's code can build it."""
    for member in members:
        try:
            with torch.device("meta"):
                build(member.model, n_classes, member.head_scale)
        except ValueError as error:
            raise UserError(f"{path.name}: {flat(error)}; a model file holds none of others: export to .onnx") from None


def read(path: Path) -> tuple[Description, list[FaceNetwork]]:
    """The description and the networks of a model file, on the CPU and in float32.

    Raises:
        UserError: there is no such file; it is damaged, of another project or of a newer version; or its weights do not
            fit its description.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if not path.is_file():
            raise UserError(f"{path}: no such file") from None
        raise UserError(f"{path}: damaged, or not a model file ({flat(error)}); get it again") from None
    if KEY not in metadata:
        raise UserError(f"{path}: a safetensors file, but not one that `fer-lightning export` wrote")
    description = parse(metadata[KEY], path)
    if metadata.get(DIGEST) != _digest(metadata[KEY], tensors):
        raise UserError(f"{path}: damaged, as its checksum is wrong; get it again")
    _check_shapes(description, tensors, path)
    networks = [_network(description, member) for member in description.members]
    unpack(tensors, networks)
    if not all(torch.isfinite(tensor).all() for network in networks for tensor in _weights(network).values()):
        raise UserError(f"{path}: damaged, as it has weights that are not finite; get it again")
    return description, networks


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _network(description: Description, member: MemberConfig) -> FaceNetwork:
    return build(member.model, len(description.classes), member.head_scale)


def _check_shapes(description: Description, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare the file's tensors with those of its networks, before any memory is taken for them."""
    expected: dict[str, tuple[int, ...]] = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for i, member in enumerate(description.members):
        if len(member.class_counts) != len(description.classes) or min(member.class_counts) < 1:
            raise UserError(f"{path}: its description is damaged (class_counts); get the file again")
        try:
            check_layers(member.model, len(shapes))
            with torch.device("meta"):
                weights = _weights(_network(description, member))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: its network cannot be built ({flat(error)}); upgrade fer-lightning") from None
        expected |= {f"{i}.{name}": tuple(tensor.shape) for name, tensor in weights.items()}
        if description.precision == "int8":
            expected |= {f"{i}.{name}{SCALE}": (len(tensor),) for name, tensor in weights.items() if tensor.ndim > 1}
    wrong = sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name))
    if wrong:
        raise UserError(f"{path}: damaged, as the tensor {wrong[0][:80]!r} does not fit its network; get it again")


def _weights(network: FaceNetwork) -> dict[str, Tensor]:
    """Parameters and statistics; not the batch counters, which only training needs."""
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
