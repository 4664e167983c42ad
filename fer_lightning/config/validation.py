"""Checks of a resolved config, before any data is read or anything trained."""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fer_lightning.config import devices
from fer_lightning.config.precision import BF16, FP16, FP32, has_native_bf16
from fer_lightning.config.schema import Distill, Protocol
from fer_lightning.errors import UserError
from fer_lightning.metrics.scores import by_name

log = logging.getLogger(__name__)


SEEDS = 2**32
"""Seeds are below it: numpy's and Lightning's limit."""


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of `torch.compile`."""
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Of these, those whose gradients are overwritten by the next batch."""


_RANKS = "choose trainer.devices, or start the ranks with torchrun or srun"
_SHORT = "for a short run, use trainer.max_epochs=1 trainer.limit_train_batches=2"
OF_THIS_PROJECT = {
    **dict.fromkeys(("strategy", "num_nodes", "use_distributed_sampler"), _RANKS),
    **dict.fromkeys(("fast_dev_run", "overfit_batches", "num_sanity_val_steps"), _SHORT),
    "enable_progress_bar": "use trainer.progress_bar",
    **dict.fromkeys(("callbacks", "enable_checkpointing"), "use the config group callbacks"),
    "logger": "use the config group logger",
    "default_root_dir": "use hydra.run.dir",
    **dict.fromkeys(("enable_model_summary", "plugins", "reload_dataloaders_every_n_epochs"), "leave it out"),
}
"""Arguments of Lightning's Trainer that this project sets itself, or that would change what it measures; what to do
instead."""

TUNERS = {
    "BackboneFinetuning": "use finetune.freeze_epochs and finetune.layer_decay",
    "BatchSizeFinder": "set data.batch_size",
    "LearningRateFinder": "set optimizer.lr, or tune it with sweep=optuna",
}
"""Callbacks of Lightning that expect another optimizer or another data loader; what to do instead."""


class Started(NamedTuple):
    """Processes that torchrun or srun started for this job.

    Attributes:
        world: on all machines.
        local_world: on this machine.
    """

    world: int
    local_world: int


def check(settings: Mapping[str, Any], started: Started | None = None) -> None:
    """Look for options that contradict each other or this machine.

    Args:
        settings: the resolved config, as plain containers.
        started: the processes that were started from outside, if any were.

    Raises:
        UserError: the first problem found.
    """
    _check_seeds(settings)
    _check_effect(settings)
    _check_data(settings["data"])
    _check_training(settings)
    _check_devices(settings, started)


def _check_effect(settings: Mapping[str, Any]) -> None:
    """Raises UserError for a value that was set and would change nothing, or warns."""
    protocol, distill = settings["protocol"], settings["distill"]
    for key in ("fold", "folds"):
        if protocol[key] != getattr(Protocol, key) and protocol["name"] != "kfold":
            raise UserError(
                f"protocol.{key}={protocol[key]} has no effect on protocol={protocol['name']}: add protocol=kfold"
            )
    for key in ("alpha", "temperature"):
        if distill[key] != getattr(Distill, key) and not distill["teachers"]:
            # Not an error: a sweep may compare teachers with none.
            log.warning("distill.%s=%s has no effect without distill.teachers", key, distill[key])
    accumulated, weights = settings["trainer"]["accumulate_grad_batches"], settings["imbalance"]["loss"].get("weights")
    if weights is not None and accumulated > 1:
        log.warning(
            "imbalance.loss.weights=%s with trainer.accumulate_grad_batches=%s: the loss of each batch is divided by "
            "the weights of its own images, which weakens class weights the more the smaller data.batch_size is",
            weights,
            accumulated,
        )


def _check_seeds(settings: Mapping[str, Any]) -> None:
    synthetic = settings["data"].get("synthetic") or {}
    resample = settings["imbalance"].get("resample") or {}
    seeds = {
        "seed": settings["seed"],
        "protocol.seed": settings["protocol"]["seed"],
        "data.synthetic.seed": synthetic.get("seed", 0),
        "imbalance.resample.seed": resample.get("seed", 0),
    }
    for key, seed in seeds.items():
        if not isinstance(seed, int) or not 0 <= seed < SEEDS:
            raise UserError(f"{key}={seed}: use a whole number from 0 to {SEEDS - 1}")


def _check_compile(choice: object) -> None:
    if choice is False or choice is None:
        return
    if choice is not True and choice not in COMPILE_MODES:
        raise UserError(f"trainer.compile={choice}: use true, false or one of {', '.join(COMPILE_MODES)}")
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name):
        raise UserError("trainer.compile needs a C++ compiler, and finds none: install g++, or set CXX to yours")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise UserError(f"trainer.compile needs {header}: install Python's headers, such as the package python3-dev")


def _check_training(settings: Mapping[str, Any]) -> None:
    trainer = settings["trainer"]
    for key in trainer:
        if key in OF_THIS_PROJECT:
            raise UserError(f"trainer.{key} is set by this project: {OF_THIS_PROJECT[key]}")
    epochs, steps, every = trainer["max_epochs"], trainer["max_steps"], trainer["check_val_every_n_epoch"]
    if epochs == 0 or (epochs < 1 and steps < 1):
        raise UserError(f"trainer.max_epochs={epochs}: use 1 or more")
    if steps < 1 and steps != -1:
        raise UserError(f"trainer.max_steps={steps}: use 1 or more, or -1 for no limit")
    at_least_1 = {
        "trainer.check_val_every_n_epoch": every,
        "trainer.accumulate_grad_batches": trainer["accumulate_grad_batches"],
        "trainer.log_every_n_steps": trainer["log_every_n_steps"],
        "data.eval_batch_size": settings["data"]["eval_batch_size"],
    }
    for key, number in at_least_1.items():
        if number < 1:
            raise UserError(f"{key}={number}: use 1 or more")
    if trainer["compile"] in CUDA_GRAPHS and trainer["accumulate_grad_batches"] > 1:
        raise UserError(
            f"trainer.compile={trainer['compile']} keeps gradients for one batch only: use "
            f"trainer.compile=default with trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']}"
        )
    clip = trainer["gradient_clip_val"]
    if clip is not None and not 0 <= clip < math.inf:
        raise UserError(
            f"trainer.gradient_clip_val={clip}: use a number above 0, or null to leave gradients as they are"
        )
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        limit = 1.0 if trainer[key] is None else trainer[key]
        if not isinstance(limit, int | float) or not (0 <= limit <= 1 or (limit > 1 and limit % 1 == 0)):
            raise UserError(f"trainer.{key}={limit}: use a number of batches, or a fraction from 0 to 1")
    if unvalidated := epochs % every if epochs >= every else 0:
        log.warning(
            "trainer.max_epochs=%s is no multiple of trainer.check_val_every_n_epoch=%s: the last %s not validated, "
            "and cannot be chosen as the best",
            epochs,
            every,
            "epoch is" if unvalidated == 1 else f"{unvalidated} epochs are",
        )
    for name, node in (settings["callbacks"] or {}).items():
        target = str((node or {}).get("_target_")).rpartition(".")[2]
        if target in TUNERS:
            raise UserError(f"callbacks.{name}: {target} does not work here: {TUNERS[target]}")
    time = trainer["max_time"]
    if time is not None and not (re.fullmatch(r"\d+:\d\d:\d\d:\d\d", time.strip()) and re.search("[1-9]", time)):
        raise UserError(f"trainer.max_time={time}: use days:hours:minutes:seconds, as in 00:12:00:00")
    if trainer["limit_train_batches"] == 0:
        raise UserError("trainer.limit_train_batches=0 leaves nothing to train on: use 1 or more, or a fraction")
    if trainer["limit_test_batches"] == 0:
        raise UserError("trainer.limit_test_batches=0 leaves nothing to score: use 1 or more, or a fraction")
    shares = {"augment.first_side": (settings["augment"] or {}).get("first_side")}
    for key, mix in (("mix", settings.get("mix")), ("imbalance.mix", settings["imbalance"].get("mix"))):
        shares[f"{key}.until"] = mix["until"] if mix and mix.get("until", 1) < 1 else None
    for key, value in shares.items():
        if value and (epochs < 1 or steps > 0):
            raise UserError(
                f"{key}={value} depends on the share of trainer.max_epochs that has passed: set that, and remove "
                "trainer.max_steps"
            )
    _check_compile(trainer["compile"])
    if not math.isfinite(tau := settings["imbalance"]["posthoc_tau"]):
        raise UserError(f"imbalance.posthoc_tau={tau}: use a number, or 0 for no adjustment")
    validates = trainer["limit_val_batches"] != 0
    late = 0 < epochs < every
    users = []  # of validation scores
    if str(settings["schedule"].get("_target_", "")).endswith(".plateau"):
        users.append(("schedule=plateau", "use another schedule"))
    if any(node and str(node.get("monitor")).startswith("val/") for node in (settings["callbacks"] or {}).values()):
        users.append(("callbacks that follow the validation scores", "add callbacks=none"))
    for what, remedy in users:
        if not validates:
            raise UserError(f"trainer.limit_val_batches=0 contradicts {what}: validate, or {remedy}")
        if late:
            raise UserError(
                f"trainer.check_val_every_n_epoch={every} contradicts trainer.max_epochs={epochs} with {what}: there "
                f"would be no validation; use trainer.check_val_every_n_epoch={epochs} or less, or {remedy}"
            )


def _check_data(data: Mapping[str, Any]) -> None:
    for key in ("path", "target"):
        if data.get(key) is not None and key not in data["source"].get("takes", ()):
            raise UserError(
                f"data.{key}={data[key]} contradicts data={data['name']}, whose source does not take it: add "
                f"data=fer2013, or leave data.{key} out"
            )
    merge = data.get("merge")
    if merge is not None and not (
        isinstance(merge, Mapping) and all(isinstance(text, str) for pair in merge.items() for text in pair)
    ):
        raise UserError(f"data.merge={merge}: null, or names of classes like {{contempt: disgust}}")
    if data.get("relabel") and data.get("classes"):
        raise UserError(
            f"data.relabel={data['relabel']} contradicts data.classes: what the file names may not be among these; use "
            "data.merge, or leave one of the two out"
        )


def check_monitor(metric: str, mode: str, classes: tuple[str, ...], key: str = "monitor.metric") -> None:
    """Raises UserError for a metric that validation does not compute, or the wrong mode; `key` holds the metric."""
    modes = {f"val/{name}": entry.mode for name, entry in by_name(classes).items()}
    if key != "monitor.metric":  # of a callback
        modes |= {"train/loss": "min", "train/accuracy": "max"}
    if metric not in modes:
        near = difflib.get_close_matches(metric, modes, 3, 0.5)
        raise UserError(f"{key}={metric}: no such score; did you mean {' or '.join(near or list(modes)[:6])}?")
    if mode != (right := modes[metric]):
        mode_key = key.removesuffix("metric").removesuffix("monitor") + "mode"
        raise UserError(f"{mode_key}={mode} contradicts {key}={metric}: use {mode_key}={right}")


def _check_devices(settings: Mapping[str, Any], started: Started | None) -> None:
    trainer, batch_size = settings["trainer"], settings["data"]["batch_size"]
    kind, here = devices.kind(trainer), devices.count(trainer)
    if trainer["precision"] not in (BF16, FP16, FP32):
        raise UserError(f"trainer.precision={trainer['precision']}: use precision=fp32, bf16, fp16 or auto")
    if trainer["precision"] == FP16 and kind == "cpu":
        raise UserError("precision=fp16 needs a GPU; use precision=bf16 or fp32 on the CPU")
    if trainer["precision"] == BF16 and not has_native_bf16(kind):
        what = (
            "this CPU emulates bfloat16: expect training to take at least five times"
            if kind == "cpu"
            else ("this GPU emulates bfloat16: expect training to take several times")
        )
        log.warning("precision=bf16: %s as long as with precision=auto", what)
    if trainer.get("sync_batchnorm") and kind != "cuda":
        raise UserError("trainer.sync_batchnorm=true: PyTorch has it for GPUs only; leave it out")
    if started and kind == "mps":
        raise UserError("several Apple GPUs cannot train together; start one process, or use accelerator=cpu")
    if started and kind == "cuda" and torch.cuda.device_count() < started.local_world:
        raise UserError(
            f"{started.local_world} processes here, and this one sees {torch.cuda.device_count()} GPU: each has to see "
            "all of them; in SLURM, ask for them with --gpus-per-node, not --gpus-per-task"
        )
    if started and trainer["devices"] not in devices.AUTO and here != started.local_world:
        raise UserError(
            f"trainer.devices={trainer['devices']} contradicts the {started.local_world} processes that torchrun or "
            f"srun started on this machine: use trainer.devices={started.local_world} or auto"
        )
    world = started.world if started else here
    if (settings.get("mix") or settings["imbalance"].get("mix")) and batch_size % (2 * world):
        raise UserError(
            f"data.batch_size={batch_size}: images are mixed in pairs, so it is a multiple of {2 * world} on {world} "
            f"device{'s' if world > 1 else ''}"
        )
    if batch_size % world or batch_size < 2 * world:
        fits = [n * world for n in (batch_size // world, batch_size // world + 1) if n >= 2]
        raise UserError(
            f"data.batch_size={batch_size} cannot be divided evenly among {world} devices with at least 2 images each: "
            f"use {' or '.join(map(str, fits))}"
            if world > 1
            else f"data.batch_size={batch_size}: batch norm needs at least 2 images; raise it"
        )
