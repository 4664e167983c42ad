"""Distillation: learning the predictions of trained networks (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lightning.errors import UserError
from fer_lightning.inference import zoo
from fer_lightning.inference.load import load
from fer_lightning.inference.predictor import LoadedModel, NetworkMember
from fer_lightning.runs.folder import BEST, CHECKPOINTS, compare_partition


class Distillation:
    """A loss that is partly the divergence of a network's predictions from those of teachers.

    The teachers see the same augmented, mixed images as the network, and are averaged in probability. The share of a
    mixed image's classes thus comes from the image itself.

    Args:
        teachers: networks with the same classes.
        alpha: weight of the divergence; the loss of the labels has the weight 1 − α.
        temperature: T, by which logits of teachers and network are divided; the divergence is multiplied by T², which
            keeps the size of its gradient (section 2).
    """

    def __init__(self, teachers: Sequence[NetworkMember], alpha: float = 0.5, temperature: float = 2.0) -> None:
        self.teachers, self.alpha, self.temperature = tuple(teachers), alpha, temperature

    def to(self, device: torch.device, channels_last: bool) -> None:
        """Move the teachers to the device that trains."""
        for teacher in self.teachers:
            teacher.to(device, channels_last)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teachers' mean probabilities at the temperature, float (B, C), of images (B, 1, H, W) in [0, 1]."""
        logits = [teacher.logits_of(images).float() for teacher in self.teachers]
        return torch.stack([(z / self.temperature).softmax(1) for z in logits]).mean(0)

    def __call__(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The loss to minimise.

        Args:
            loss: of the labels.
            logits: of the network, (B, C), adjusted as for predicting.
            images: that it saw, float (B, 1, H, W) in [0, 1].
        """
        log_p = (logits.float() / self.temperature).log_softmax(1)
        divergence = F.kl_div(log_p, self.targets(images), reduction="batchmean")
        return (1 - self.alpha) * loss + self.alpha * self.temperature**2 * divergence


def check(node: Mapping[str, Any]) -> None:
    """Raises UserError for a value of the config group `distill` that is out of its range."""
    alpha, temperature = node["alpha"], node["temperature"]
    if not 0 <= alpha <= 1:
        raise UserError(f"distill.alpha={alpha}: the teachers' share of the loss, from 0 to 1")
    if not 0 < temperature < float("inf"):
        raise UserError(f"distill.temperature={temperature}: use a number above 0; 1 leaves probabilities as they are")


def located(node: Mapping[str, Any], resumed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config group `distill` with absolute paths and the digests of what they hold, so that a run is not resumed
    with other teachers, or from another folder with none.

    Args:
        node: the config group.
        resumed: that of the run that is resumed, whose teachers may be gone: a finished run needs them no longer, and
            another one is refused when it loads them.

    Raises:
        UserError: there is no such teacher.
    """
    try:
        paths = [zoo.find(Path(str(teacher)).expanduser()) for teacher in node["teachers"]]
        named = [str(path.absolute()) if path.exists() else str(path) for path in paths]
        return {**node, "teachers": named, "digests": [_digest(path) for path in paths]}
    except UserError:
        if not resumed or len(resumed["teachers"]) != len(node["teachers"]):
            raise
        return {**node, "teachers": resumed["teachers"], "digests": resumed["digests"]}


def _digest(path: Path) -> str:
    file = path / CHECKPOINTS / BEST if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise UserError(f"distill.teachers: {file}: {error.strerror}; name a finished run or a model file") from error


def distillation(
    node: Mapping[str, Any] | None,
    classes: Sequence[str],
    source: str,
    digests: Mapping[str, str],
    *,
    trust: bool,
) -> Distillation | None:
    """The object of the config group `distill`; None without teachers.

    Args:
        node: the group, see `located`.
        classes: of the run, in label order.
        source: of the run's data, for messages.
        digests: of the run's validation and test images.
        trust: allow networks of the user's own.

    Raises:
        UserError: a teacher cannot be loaded, has other classes, or was trained with other validation or test images.
    """
    if not node or not node["teachers"]:
        return None
    members: list[NetworkMember] = []
    for path in node["teachers"]:
        loaded = load(path, accelerator="cpu", trust=trust)
        _check_teacher(loaded, classes, source, digests, other_data=node["other_data"])
        members += [member for member in loaded.members if isinstance(member, NetworkMember)]
    return Distillation(members, node["alpha"], node["temperature"])


def _check_teacher(
    teacher: LoadedModel, classes: Sequence[str], source: str, digests: Mapping[str, str], *, other_data: bool
) -> None:
    path = teacher.path
    if not all(isinstance(member, NetworkMember) for member in teacher.members):
        raise UserError(f"distill.teachers: {path}: an ONNX graph cannot teach; name its run or .safetensors file")
    if list(teacher.classes) != list(classes):
        raise UserError(
            f"distill.teachers: {path}: its classes are {', '.join(teacher.classes)}, those of the data are "
            f"{', '.join(classes)}: a teacher has the same, in the same order"
        )
    if other_data:
        return
    remedy = "name teachers of the same data and protocol, or accept any with distill.other_data=true"
    known = {part: digests[part] for part in ("val", "test")}
    if teacher.description is None:
        compare_partition(path, source, known, remedy)
    elif any(teacher.description.data.get(part) != known[part] for part in known):
        raise UserError(
            f"distill.teachers: {path}: made with other validation or test images than those of {source}, so that it "
            f"may have been trained on them; {remedy}"
        )
