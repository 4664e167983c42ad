"""Lightning's Trainer for one stage of a job."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fer_lightning.config import devices
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.data.loader import EvaluationOrder
from fer_lightning.distributed import ranks
from fer_lightning.distributed.strategy import OrderedDDP
from fer_lightning.errors import UserError, flat
from fer_lightning.runs.checkpoints import WholeCheckpointIO
from fer_lightning.training.callbacks import History, ProgressBar, ProgressLine
from fer_lightning.training.statistics import SyncedBatchNorm


def make_trainer(
    group: Mapping[str, Any],
    run_dir: Path,
    callbacks: Sequence[L.Callback],
    history: History,
    loggers: Sequence[Any],
    *,
    max_epochs: int,
) -> L.Trainer:
    """The Trainer of this process, which is one of several ranks if torchrun or srun started it.

    Args:
        group: the config group `trainer`.
        run_dir: the run folder.
        callbacks: in addition to the history and to those that report progress.
        history: of the run.
        loggers: of the run.
        max_epochs: the epoch at which this stage ends.

    Raises:
        UserError: Lightning rejects an argument.
    """
    # The data module limits the batches of evaluation over all ranks; Lightning would limit those of each.
    limits = {"limit_val_batches": 0 if group["limit_val_batches"] == 0 else 1.0, "limit_test_batches": 1.0}
    arguments = dict(group) | limits | {"max_epochs": max_epochs}
    del arguments["channels_last"], arguments["compile"]  # of the network
    bar = arguments.pop("progress_bar") and sys.stdout.isatty()  # in a file it would be noise
    rank = ranks.started_outside()
    arguments["devices"] = devices.chosen(group, rank.local_world if rank else 1)
    if rank:
        # The process group exists by now; its backends follow from the machine.
        arguments |= {"strategy": OrderedDDP(), "num_nodes": rank.nodes, "use_distributed_sampler": False}
    try:
        trainer = L.Trainer(
            default_root_dir=run_dir,
            callbacks=[*callbacks, history, ProgressBar(history) if bar else ProgressLine(history)],
            logger=list(loggers),
            num_sanity_val_steps=0,
            enable_progress_bar=bar,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, L.callbacks.Checkpoint) for c in callbacks),
            # Named, since Lightning would guess otherwise, and take a batch script of SLURM for one of its tasks.
            plugins=[
                WholeCheckpointIO(),
                TorchElasticEnvironment() if rank else LightningEnvironment(),
                *([SyncedBatchNorm()] if group.get("sync_batchnorm") else []),
            ],
            **arguments,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {flat(error, 300)}") from error
    # With max_steps, Lightning would take a finished epoch for an unfinished one, and end it again when resumed.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    if rank:
        # It waits for the device before each batch; `LastCheckpoint` agrees on signals without it.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def check_limits(group: Mapping[str, Any], data: FERDataModule) -> None:
    """Check that `limit_val_batches` and `limit_test_batches` leave a batch, since scoring comes after training.

    Args:
        group: the config group `trainer`.
        data: whose batches are limited.

    Raises:
        UserError: a fraction is less than a batch.
    """
    val, test = data.parts.val, data.parts.test
    # Validation images are scored by `limit_test_batches` as well, when training has ended.
    for key, parts in (("limit_val_batches", [val]), ("limit_test_batches", [val, test])):
        limit = group[key]
        for rows in parts:
            batches = len(EvaluationOrder(len(rows), data.eval_batch_size))
            if isinstance(limit, float) and 0 < limit * batches < 1:
                raise UserError(
                    f"trainer.{key}={limit} of {batches} batches is less than one batch: use a larger fraction, or a "
                    "whole number of batches"
                )


def quiet() -> None:
    """Silence messages of libraries that do not concern the run."""
    logging.raiseExceptions = False  # a full disk under the log file is reported once, by the run
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # loaders have no workers by design
        ".*smaller than the logging interval",  # the first and last batch of an epoch are logged in any case
        ".*isinstance.treespec, LeafSpec.*",
        "Experiment logs directory .* exists and is not empty",
        "Checkpoint directory .* exists and is not empty",
        "The `srun` command is available",  # a node of a cluster may train without it: the ranks are started here
        "Be aware that when using `ckpt_path`",  # a callback may be left out of a run that is continued
        ".*sync_dist=True.*",  # what is logged per epoch is the same on every rank already
        "The checkpoint was not created with WeightAveraging",  # so begins the average of a second stage
    ):
        warnings.filterwarnings("ignore", message=message)
