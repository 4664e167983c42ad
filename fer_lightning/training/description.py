"""A description of a run, for its log and the head of its report."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fer_lightning import __version__
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.runs.results import git_commit
from fer_lightning.training.module import FERClassifier

log = logging.getLogger(__name__)


def describe(
    settings: Mapping[str, Any], run_dir: Path, data: FERDataModule, classifier: FERClassifier, device: torch.device
) -> dict[str, str]:
    """Data, network, hardware and versions of a run.

    Args:
        settings: the resolved config.
        run_dir: the run folder.
        data: the data of the run.
        classifier: that is trained.
        device: of this process.
    """
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    parameters = sum(p.numel() for p in classifier.network.parameters())
    model, parts = settings["model"], data.parts
    teachers = settings.get("distill", {}).get("teachers", [])
    name = str(model["_target_"]).rpartition(".")[2] + (f"-{model['depth']}" if "depth" in model else "")
    network = [name, *([f"{model['stem']} stem"] if "stem" in model else []), f"{parameters:,} parameters"]
    return {
        "name": "/".join(run_dir.parts[-2:]),
        "data": data.faces.source,
        "protocol": settings["protocol"]["name"],
        "images": f"{len(parts.train):,} train, {len(parts.val):,} val, {len(parts.test):,} test",
        **({"cleaned": data.cleaned} if data.cleaned else {}),
        "imbalance": settings["imbalance"]["name"],
        "network": ", ".join(network),
        **({"teachers": ", ".join(teachers)} if teachers else {}),
        "seed": str(settings["seed"]),
        "hardware": f"{hardware}, {settings['trainer']['precision']}, {torch.get_num_threads()} threads",
        "versions": f"fer-lightning {__version__}, torch {torch.__version__}, lightning {version('lightning')}, "
        f"Python {platform.python_version()}",
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def announce(facts: Mapping[str, str], data: FERDataModule, run_dir: Path, checkpoint: Path | None) -> None:
    """Print and log the description at the start of a run, which may be resumed from a checkpoint."""
    counts = ", ".join(f"{c} {n:,}" for c, n in zip(data.faces.classes, data.class_counts, strict=True))
    for line in (
        f"data     {facts['data']}, protocol {facts['protocol']}: {facts['images']}",
        *([f"cleaned  {data.cleaned}"] if data.cleaned else []),
        f"training {facts['imbalance']}: {counts}",
        f"network  {facts['network']}; {facts['hardware']}",
        *([f"teachers {facts['teachers']}"] if "teachers" in facts else []),
        f"run      {run_dir}" + (f", resumed from {checkpoint.name}" if checkpoint else ""),
    ):
        log.info(line)
        print(line, flush=True)
    log.info("versions %s, commit %s", facts["versions"], facts["commit"])
