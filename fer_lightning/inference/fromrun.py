"""The best checkpoint of a run as part of a predictor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fer_lightning.config import devices, instantiate
from fer_lightning.config.dataset import settings_of
from fer_lightning.config.saved import read_yaml
from fer_lightning.errors import UserError, flat
from fer_lightning.inference.description import MemberConfig
from fer_lightning.inference.predictor import LoadedModel, NetworkMember
from fer_lightning.metrics.calibration import PREFIX, Calibration
from fer_lightning.models.build import PACKAGE, check_weights
from fer_lightning.runs.checkpoints import read_checkpoint
from fer_lightning.runs.folder import BEST, CHECKPOINTS, CONFIG, METRICS, finished
from fer_lightning.runs.resume import HYDRA, ONE_RUN

NETWORK = "network."
"""Prefix of the network's parameters and buffers in a checkpoint's state dict."""

PATHS = ("data.path", "data.votes", "data.relabel", "data.cache_dir", "distill.teachers", "init_from")
"""Keys whose values are paths on the training machine."""


def load_run(
    run_dir: Path, *, accelerator: str = "auto", posthoc_tau: float | None = None, trust: bool = False
) -> LoadedModel:
    """The best checkpoint of a run; arguments and errors are those of `fer_lightning.inference.load.load`."""
    settings, path = settings_of(run_dir, trust=trust), run_dir / CHECKPOINTS / BEST
    batch_size = settings["data"]["eval_batch_size"]
    if batch_size < 1:
        raise UserError(f"{run_dir / CONFIG}: data.eval_batch_size={batch_size}: use 1 or more")
    device = torch.device(devices.kind({"accelerator": accelerator}, "--accelerator"))
    if not path.is_file():
        raise UserError(f"{path}: no best checkpoint; the run has not finished an epoch, or keeps no checkpoints")
    checkpoint = read_checkpoint(path)
    try:
        own, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        instantiate.check_targets(own["model"], where=str(path), trust=trust)
        weights = {name[len(NETWORK) :]: value for name, value in state.items() if name.startswith(NETWORK)}
        if str(own["model"].get(instantiate.TARGET)).startswith(PACKAGE):
            shapes = {name: tuple(value.shape) for name, value in weights.items()}
            check_weights(own["model"], len(own["classes"]), own["head_scale"], shapes)
        try:
            network = instantiate.network(own["model"], len(own["classes"]), own["head_scale"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        network.load_state_dict(weights)
        if len(own["class_counts"]) != len(own["classes"]):
            raise ValueError(f"class_counts must hold {len(own['classes'])} numbers")
        member = NetworkMember(
            network,
            own["class_counts"],
            posthoc_tau=own["posthoc_tau"] if posthoc_tau is None else posthoc_tau,
            device=device,
            precision=settings["trainer"]["precision"],
            channels_last=own["channels_last"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: damaged, or not a checkpoint of this project ({flat(error, 300)})") from error
    metrics = finished(run_dir) or {}
    config = MemberConfig(
        model=own["model"],
        head_scale=own["head_scale"],
        class_counts=own["class_counts"],
        posthoc_tau=own["posthoc_tau"],
        seed=own["seed"],
        overrides=_overrides(run_dir),
        teachers=_teachers(settings),
    )
    values = {key.removeprefix(PREFIX): value for key, value in metrics.items() if key.startswith(PREFIX)}
    try:
        calibration = Calibration(**{key: float(value) for key, value in values.items()}) if values else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{run_dir / METRICS}: its calibration is damaged ({flat(error)}); restore it") from None
    try:
        scores = {key: float(metrics[key]) for key in metrics if key.startswith("test/")}
    except (TypeError, ValueError) as error:
        raise UserError(f"{run_dir / METRICS}: its scores are damaged ({flat(error)}); restore it") from None
    name = "/".join(run_dir.absolute().parts[-2:])
    return LoadedModel(
        run_dir,
        name,
        (member,),
        (config,),
        tuple(own["classes"]),
        calibration=calibration,
        batch_size=batch_size,
        scores=scores,
        commit=str(metrics.get("commit", "unknown")),
    )


def _teachers(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Overrides of the runs that a run was distilled from or started from, and before each those of its own."""
    found: dict[str, list[str]] = {}

    def add(settings: Mapping[str, Any], later: frozenset[Path]) -> None:
        earlier = [*settings.get("distill", {}).get("teachers", []), settings.get("init_from")]
        for run in (Path(one) for one in earlier if one):
            if run not in later and (own := _overrides(run)):
                if (run / CONFIG).is_file():
                    add(read_yaml(run / CONFIG, dict), later | {run})
                found[run.name] = own

    add(settings, frozenset())  # a stranger's run may name itself
    return found


def _overrides(run_dir: Path) -> list[str]:
    """The overrides that a run was started with, the paths of its data and of other runs without their folders."""
    file = run_dir / HYDRA / "overrides.yaml"
    if not file.is_file():
        return []
    named = (str(override).partition("=") for override in read_yaml(file, list))
    own = [key + equals + (_basename(value) if key.lstrip("+") in PATHS else value) for key, equals, value in named]
    return [*own, ONE_RUN] if any(override.lstrip("+").startswith("sweep=") for override in own) else own


def _basename(path: str) -> str:
    """The last part of a path or an address, as it may be written in an override."""
    if path.startswith("["):
        return f"[{','.join(_basename(one) for one in path.strip('[]').split(','))}]"
    return re.split(r"[/\\]", path.strip(" '\"").rstrip("/\\"))[-1]
