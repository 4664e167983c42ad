"""What can be known to be wrong before any data is read or anything trained."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fer_lightning.config import devices
from fer_lightning.config.precision import BF16, FP16, has_native_bf16
from fer_lightning.data.loader import first_epoch
from fer_lightning.distributed.ranks import Ranks
from fer_lightning.errors import UserError
from fer_lightning.training.metrics import scores

log = logging.getLogger(__name__)

LOWER_IS_BETTER = ("loss", "ece")


def check(settings: Mapping[str, Any], place: Ranks | None = None) -> None:
    """Look for options that contradict each other or this machine.

    Args:
        settings: the resolved config, as plain containers.
        place: this process among ranks that were started outside, if it is one.

    Raises:
        UserError: the first thing found.
    """
    data, trainer = settings["data"], settings["trainer"]
    _check_source(data)
    _check_cleaning(data)
    if trainer["max_epochs"] < 1 and trainer["max_steps"] < 1:
        raise UserError(f"trainer.max_epochs={trainer['max_epochs']}: 1 at least is needed")
    every, epochs = trainer["check_val_every_n_epoch"], trainer["max_epochs"]
    if settings["callbacks"] and any(settings["callbacks"].values()):  # all of them go by validation
        if trainer["limit_val_batches"] == 0:
            raise UserError("trainer.limit_val_batches=0 leaves callbacks nothing to go by: add callbacks=none")
        if 0 < epochs < every:
            raise UserError(
                f"trainer.check_val_every_n_epoch={every} contradicts trainer.max_epochs={epochs}: there would be no "
                "validation to choose a checkpoint by"
            )
    _check_imbalance(settings)
    _check_devices(settings, place)


def _check_source(data: Mapping[str, Any]) -> None:
    for key in ("path", "target"):
        if data.get(key) is not None and key not in data["source"].get("takes", ()):
            raise UserError(
                f"data.{key}={data[key]} contradicts data={data['name']}, whose source does not take it: leave one out"
            )
    merge = data.get("merge")
    if merge is not None and not (
        isinstance(merge, Mapping) and all(isinstance(text, str) for pair in merge.items() for text in pair)
    ):
        raise UserError(f"data.merge={merge}: null, or names of classes like {{contempt: disgust}}")


def _check_cleaning(data: Mapping[str, Any]) -> None:
    if data.get("relabel") and data.get("classes"):
        raise UserError(
            f"data.relabel={data['relabel']} contradicts data.classes: what the file names may not be among these; use "
            "data.merge, or leave one of the two out"
        )


def _check_imbalance(settings: Mapping[str, Any]) -> None:
    imbalance, trainer = settings["imbalance"], settings["trainer"]
    if settings.get("mix") and imbalance.get("mix"):
        raise UserError(f"mix and imbalance={imbalance['name']} both mix images: use mix=none")
    loss, sampler, retrain = imbalance["loss"], imbalance.get("sampler") or {}, imbalance.get("retrain_after")
    late = {
        "imbalance.loss.after": loss.get("after"),
        "imbalance.sampler.after": sampler.get("after"),
        "imbalance.retrain_after": retrain,
    }
    epochs, every = trainer["max_epochs"], trainer["check_val_every_n_epoch"]
    for key, after in late.items():
        if after and (trainer["max_epochs"] < 1 or trainer["max_steps"] > 0):
            raise UserError(f"{key}={after} is a fraction of trainer.max_epochs: set that, and leave trainer.max_steps")
        if after and (epochs // every) * every <= first_epoch(after, epochs):
            raise UserError(
                f"trainer.check_val_every_n_epoch={every} leaves what {key}={after} defers, from after epoch "
                f"{first_epoch(after, epochs)} of {epochs} on, no validation to choose a checkpoint by"
            )
    head = imbalance.get("head")
    if head is not None and not (
        set(head) == {"scale"} and isinstance(head["scale"], int | float) and head["scale"] > 0
    ):
        raise UserError(f"imbalance.head={head}: null, or a cosine head's {{scale: <number above 0>}}")
    if retrain is None:
        return
    if not 0 < retrain < 1 or first_epoch(retrain, epochs) == 0:
        raise UserError(
            f"imbalance.retrain_after={retrain} of trainer.max_epochs={epochs} leaves the first stage no epoch"
        )
    targets = [str(node.get("_target_", "")) for node in (settings["callbacks"] or {}).values() if node]
    if any(target.endswith("WeightAveraging") for target in targets):
        raise UserError("imbalance.retrain_after with callbacks=ema: the average would be of two classifiers")


def check_monitor(monitor: Mapping[str, str], classes: tuple[str, ...]) -> None:
    """Raises UserError for a metric that validation does not compute, or one that is to go the wrong way."""
    metric, mode = monitor["metric"], monitor["mode"]
    known = [f"val/{name}" for name in ("loss", "ece", *scores(np.zeros((len(classes),) * 2, np.int64), classes))]
    if metric not in known:
        near = difflib.get_close_matches(metric, known, 3, 0.5)
        raise UserError(f"monitor.metric={metric}: no such score; did you mean {' or '.join(near or known[:6])}?")
    right = "min" if metric.rpartition("/")[2] in LOWER_IS_BETTER else "max"
    if mode != right:
        raise UserError(f"monitor.mode={mode} contradicts monitor.metric={metric}: use monitor.mode={right}")


def _check_devices(settings: Mapping[str, Any], place: Ranks | None) -> None:
    trainer, batch_size = settings["trainer"], settings["data"]["batch_size"]
    kind, here = devices.kind(trainer), devices.count(trainer)
    if trainer["precision"] == FP16 and kind == "cpu":
        raise UserError("precision=fp16 needs a GPU; use precision=bf16 or fp32 on the CPU")
    if trainer["precision"] == FP16 and trainer["gradient_clip_val"] and settings["optimizer"].get("fused"):
        raise UserError(
            "precision=fp16 with trainer.gradient_clip_val needs unscaled gradients, which a fused optimizer does not "
            "give: add optimizer.fused=false"
        )
    if trainer["precision"] == BF16 and not has_native_bf16(kind):
        what = (
            "this CPU emulates bfloat16: expect training to take at least five times"
            if kind == "cpu"
            else ("this GPU emulates bfloat16: expect training to take several times")
        )
        log.warning("precision=bf16: %s as long as with precision=auto", what)
    if trainer.get("sync_batchnorm") and kind != "cuda":
        raise UserError("trainer.sync_batchnorm=true: PyTorch has it for GPUs only; leave it out")
    if place and kind == "mps":
        raise UserError("several Apple GPUs cannot train together; start one process, or use accelerator=cpu")
    if place and kind == "cuda" and torch.cuda.device_count() < place.local_world:
        raise UserError(
            f"{place.local_world} processes here, and this one sees {torch.cuda.device_count()} GPU: each has to see "
            "all of them; in SLURM, ask for them with --gpus-per-node, not --gpus-per-task"
        )
    if place and trainer["devices"] not in devices.AUTO and here != place.local_world:
        raise UserError(
            f"trainer.devices={trainer['devices']} contradicts the {place.local_world} processes that torchrun or srun "
            f"started on this machine: use trainer.devices={place.local_world} or auto"
        )
    world = place.world if place else here
    if (settings.get("mix") or settings["imbalance"].get("mix")) and batch_size % (2 * world):
        raise UserError(
            f"data.batch_size={batch_size}: images are mixed in pairs, so it is a multiple of {2 * world} on {world} "
            f"device{'s' if world > 1 else ''}"
        )
    if batch_size % world or batch_size < 2 * world:
        fits = [n * world for n in (batch_size // world, batch_size // world + 1) if n >= 2]
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared out evenly, 2 images or more to each of {world} devices: "
            f"use {' or '.join(map(str, fits))}"
            if world > 1
            else f"data.batch_size={batch_size}: batch norm needs 2 images at least"
        )
