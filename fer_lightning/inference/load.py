"""From runs, model files, ONNX files or names of shipped models to a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fer_lightning.config import devices
from fer_lightning.data.table import SIDE
from fer_lightning.errors import UserError
from fer_lightning.inference import modelfile, zoo
from fer_lightning.inference.description import TTA, Description
from fer_lightning.inference.faces.detector import RULES
from fer_lightning.inference.faces.frame import CropRule
from fer_lightning.inference.predictor import BATCH, GPU_BATCH, LoadedModel, Member, NetworkMember, Predictor
from fer_lightning.inference.tta import check
from fer_lightning.metrics.calibration import NEVER_SURE, Calibration

if TYPE_CHECKING:
    from fer_lightning.inference.onnxfile import Session


def load_model(
    model: str | Path | Sequence[str | Path], *, accelerator: str = "auto", tta: str | None = None, trust: bool = False
) -> Predictor:
    """The predictor of a run's best checkpoint, of a file, of a shipped model, or of several of them together.

    Several are averaged. A run predicts as it did when it was scored: in its precision where the device computes that
    natively, else in float32, with its batch size and its post-hoc adjustment.

    Args:
        model: run folder, .safetensors or .onnx file, or name of a shipped model; or a list of them.
        accelerator: "auto", "cpu" or "gpu".
        tta: "none", "flip" or "ten_crop"; None for what the file was calibrated with, and none for runs.
        trust: allow a network that is not on the allow-list, see `fer_lightning.config.instantiate.check_targets`.

    Raises:
        UserError: there is no such run or file, it is damaged, its network is not allowed, there is no such device, or
            the models differ in classes, sizes or rules for crops.

    Example:
        >>> predictor = load_model("outputs/2026-01-31/12-00-00")  # doctest: +SKIP
        >>> predictor.probabilities(images)  # uint8 (N, 48, 48) to float64 (N, 7)  # doctest: +SKIP
    """
    return together([load(one, accelerator=accelerator, trust=trust) for one in as_list(model)], tta)


def as_list(models: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """One model, or several, as a list."""
    return [models] if isinstance(models, str | Path) else list(models)


def load(
    model: str | Path, *, accelerator: str = "auto", posthoc_tau: float | None = None, trust: bool = False
) -> LoadedModel:
    """One run or file.

    Args:
        model: see `load_model`.
        accelerator: "auto", "cpu" or "gpu".
        posthoc_tau: strength of the post-hoc logit adjustment; None for the model's own.
        trust: see `load_model`.

    Raises:
        UserError: see `load_model`.
    """
    path = zoo.find(model)
    if path.is_dir():
        from fer_lightning.inference.fromrun import load_run  # Hydra and all that reads run folders

        return load_run(path, accelerator=accelerator, posthoc_tau=posthoc_tau, trust=trust)
    device = torch.device(devices.kind({"accelerator": accelerator}, "--accelerator"))
    if path.suffix == ".onnx":
        from fer_lightning.inference.onnxfile import Session

        if posthoc_tau is not None:
            raise UserError(f"{path}: --posthoc-tau cannot change an ONNX graph; name the run or its model file")
        if accelerator == "gpu":
            raise UserError(f"{path}: ONNX files run on the CPU here; name the run or its model file")
        session = Session(path)
        return _loaded(path, session.description, (_Graph(session),), BATCH)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: neither a run folder nor a .safetensors or .onnx file of `fer-lightning export`")
    description, networks = modelfile.read(path)
    members = tuple(
        NetworkMember(
            network,
            member.class_counts,
            posthoc_tau=member.posthoc_tau if posthoc_tau is None else posthoc_tau,
            device=device,
        )
        for network, member in zip(networks, description.members, strict=True)
    )
    return _loaded(path, description, members, BATCH if device.type == "cpu" else GPU_BATCH)


def together(models: Sequence[LoadedModel], tta: str | None = None) -> Predictor:
    """The predictor of the mean of models.

    The temperature and threshold of several models that were not calibrated together are the means of theirs (all
    predictions are unsure if all of one model are); those of a model stay where another test-time augmentation is asked
    for.

    Raises:
        UserError: their classes differ, or a graph has its own test-time augmentation.
    """
    first = models[0]
    for other in models[1:]:
        if other.classes != first.classes:
            raise UserError(
                f"{other.path}: its classes are {', '.join(other.classes)}, those of {first.path} are "
                f"{', '.join(first.classes)}: only models of the same classes, in the same order, can be averaged"
            )
    first_rules = _rules(first)
    for other in models[1:]:
        if _rules(other) != first_rules:
            raise UserError(
                f"{other.path}: it was made for faces of another size or cut out by other rules than {first.path}, so "
                "that no face suits both; predict with each by itself"
            )
    wanted = check(tta) if tta is not None else first.tta if len({one.tta for one in models}) == 1 else "none"
    for one in models:
        inside = {member.tta for member in one.members if member.tta is not None} - {wanted}
        if inside:
            raise UserError(
                f"--tta {wanted}: {one.path} averages its views inside the graph (--tta {', '.join(inside)}); export "
                "it again with another --tta"
            )
    known = [one.calibration for one in models if one.calibration]
    calibration = first.calibration
    if len(known) < len(models):
        calibration = None
    elif len(models) > 1 or wanted != first.tta:  # coverage and accuracy are those of other predictions
        thresholds = [part.threshold for part in known]
        calibration = Calibration(
            float(np.mean([part.temperature for part in known])),
            NEVER_SURE if NEVER_SURE in thresholds else float(np.mean(thresholds)),
        )
    return Predictor(
        [member for one in models for member in one.members],
        first.classes,
        tta=wanted,
        calibration=calibration,
        batch_size=min(one.batch_size for one in models),
        size=first_rules[0],
        crop=first_rules[1],
    )


def _rules(model: LoadedModel) -> tuple[int, dict[str, CropRule]]:
    """Size of the faces, and how they are cut out."""
    known = model.description
    return (SIDE, RULES) if known is None else (known.size, known.crop)


def _loaded(path: Path, description: Description, members: tuple[Member, ...], batch_size: int) -> LoadedModel:
    return LoadedModel(
        path,
        description.name,
        members,
        tuple(description.members),
        tuple(description.classes),
        description.tta,
        description.calibration,
        batch_size,
        description,
        scores=description.scores,
        commit=description.commit,
    )


class _Graph:
    """An ONNX session as a member: logits are those before the temperature that the graph divides by."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tta: TTA | None = None if session.description.tta == "none" else session.description.tta

    def logits(self, faces: Tensor) -> Tensor:
        probabilities = torch.from_numpy(self.session.probabilities(faces.numpy()))
        logits = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
        return logits * self.session.description.calibration.temperature
