"""Model files: weights as safetensors, and everything that predicting needs as one JSON in the metadata.

A file is read without pickle and without Hydra: tensors by safetensors, the description by a strict schema; networks
are those that `fer_lightning.models` defines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fer_lightning.errors import UserError, flat
from fer_lightning.inference.faces.frame import CropRule
from fer_lightning.inference.tta import TTA
from fer_lightning.metrics.calibration import Calibration
from fer_lightning.models.build import build
from fer_lightning.models.network import FaceNetwork
from fer_lightning.report.files import write_atomically

KEY = "fer_lightning"
"""Key of the description in the file's metadata."""

DIGEST = "fer_lightning_digest"
"""Key of a digest of the description and the tensors: a flipped bit would go unnoticed otherwise."""

FORMAT = 1
"""Version of the description. A reader refuses higher ones."""

MAX_DESCRIPTION = 1 << 20
"""Bytes of the longest description that is read."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class MemberConfig(_Strict):
    """What a network is built from.

    Attributes:
        model: node of the config group `model`.
        head_scale: scale of a cosine head; None for a linear one.
        class_counts: training images per class.
        posthoc_tau: strength of the post-hoc logit adjustment.
        seed: of its run.
    """

    model: dict[str, Any]
    head_scale: float | None = None
    class_counts: list[int]
    posthoc_tau: float = 0.0
    seed: int = 0


class Description(_Strict):
    """The JSON of a model file.

    Attributes:
        format: version of this schema.
        name: of the model.
        version: of fer-lightning that wrote it.
        commit: of the source tree that trained it.
        classes: class names in label order.
        size: height and width of the faces that it was trained on.
        members: of the ensemble; one for a single network.
        tta: test-time augmentation that the calibration holds for, and that is used by default.
        calibration: temperature and threshold.
        crop: for each detector the rule by which faces are cut out.
        protocol: the config group `protocol`: who trained, validated and tested.
        data: source and digests of the data.
        scores: metrics as in metrics.json: "test/accuracy", "test/accuracy_low", "test/clean/accuracy" ….
        precision: of the weights.
        notes: on licences and use.
    """

    format: Literal[1] = FORMAT
    name: str
    version: str
    commit: str
    classes: list[str] = Field(min_length=2)
    size: int = Field(gt=0, le=1024)
    members: list[MemberConfig] = Field(min_length=1, max_length=64)
    tta: TTA = "none"
    calibration: Calibration
    crop: dict[str, CropRule]
    protocol: dict[str, str | int | float]
    data: dict[str, str]
    scores: dict[str, float]
    precision: Literal["fp16", "fp32", "int8"]
    notes: str


def round_to_half(network: FaceNetwork) -> None:
    """Round a network's weights to those that are stored in float16."""
    for tensor in _weights(network).values():
        if tensor.ndim > 1:
            tensor.copy_(tensor.half())


def write(path: Path, description: Description, networks: Sequence[FaceNetwork]) -> None:
    """Write a model file, atomically.

    Convolutions and matrices are stored in the precision of the description; what normalises and shifts features is
    small and stays in float32.

    Args:
        path: the file.
        description: of the members, in the order of `networks`.
        networks: the members.

    Raises:
        OSError: the file cannot be written.
    """
    half = description.precision == "fp16"
    tensors = {
        f"{i}.{name}": (tensor.half() if half and tensor.ndim > 1 else tensor).cpu().contiguous()
        for i, network in enumerate(networks)
        for name, tensor in _weights(network).items()
    }
    text = description.model_dump_json()
    write_atomically(path, save(tensors, {KEY: text, DIGEST: _digest(text, tensors)}))


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
    for i, network in enumerate(networks):
        state = {name: tensors[f"{i}.{name}"].float() for name in _weights(network)}
        if not all(torch.isfinite(tensor).all() for tensor in state.values()):
            raise UserError(f"{path}: damaged, as it has weights that are not finite; get it again")
        network.load_state_dict(state, strict=False)  # without counters, which only training needs
    return description, networks


def parse(text: str, path: Path) -> Description:
    """The description in a file's metadata.

    Raises:
        UserError: it is invalid, or of a newer version.
    """
    try:
        version = json.loads(text[:MAX_DESCRIPTION]).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise UserError(f"{path}: written by a newer version of fer-lightning (format {version}); upgrade this one")
        return Description.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, AttributeError, RecursionError) as error:
        reason = flat(error)
    raise UserError(f"{path}: its description is damaged ({reason}); get the file again")


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _network(description: Description, member: MemberConfig) -> FaceNetwork:
    return build(member.model, len(description.classes), member.head_scale)


def _check_shapes(description: Description, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare the file's tensors with those of its networks, before any memory is taken for them."""
    expected, shapes = {}, {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for i, member in enumerate(description.members):
        if len(member.class_counts) != len(description.classes) or min(member.class_counts) < 1:
            raise UserError(f"{path}: its description is damaged (class_counts); get the file again")
        try:
            with torch.device("meta"):
                weights = _weights(_network(description, member))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: its network cannot be built ({flat(error)}); upgrade fer-lightning") from None
        expected |= {f"{i}.{name}": tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name))
    if wrong:
        raise UserError(f"{path}: damaged, as the tensor {wrong[0][:80]!r} does not fit its network; get it again")


def _weights(network: FaceNetwork) -> dict[str, Tensor]:
    """Parameters and statistics; not the batch counters, which only training needs."""
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
