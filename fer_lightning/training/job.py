"""One job: data, training, the best checkpoint scored once, the run folder."""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fer_lightning.config import devices, instantiate
from fer_lightning.config.dataset import Settings, load_data
from fer_lightning.config.validation import check_monitor
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.distributed import ranks
from fer_lightning.distributed.signals import handled
from fer_lightning.distributed.strategy import OrderedDDP
from fer_lightning.errors import UserError
from fer_lightning.report import tracking
from fer_lightning.runs.checkpoints import WholeCheckpointIO
from fer_lightning.runs.folder import checkpoint_to_resume, keep_partition
from fer_lightning.training import results
from fer_lightning.training.callbacks import History, ProgressBar
from fer_lightning.training.callbacks.progress import on_terminal
from fer_lightning.training.module import FERClassifier

log = logging.getLogger(__name__)


def run(settings: Settings, run_dir: Path) -> dict[str, float | str]:
    """Train as configured, score the best checkpoint on every test image and fill the run folder.

    Goes on from the folder's newest whole checkpoint, if it holds one. With several devices this is what each rank
    runs.

    Args:
        settings: the resolved config.
        run_dir: the run folder, see `fer_lightning.runs.folder.enter`.

    Returns:
        What metrics.json holds: names to numbers, see the README.

    Raises:
        UserError: whatever the user can mend, before training starts where it can be known by then.
        Interrupted: a signal asked the run to end; it can be gone on with.
    """
    quiet()
    place = ranks.started_outside()
    with handled(), _full_disk_told(run_dir):
        if place:
            ranks.connect()
        L.seed_everything(settings["seed"], workers=True, verbose=False)
        data = ranks.first_alone(lambda: load_data(settings))
        with ranks.agreeing():
            check_monitor(settings["monitor"], data.faces.classes)
            classifier = make_classifier(settings, data)
            loggers = instantiate.named("logger", settings["logger"])
            history = History(run_dir / "metrics.csv")
            callbacks = [*instantiate.named("callbacks", settings["callbacks"]), history]
            trainer = make_trainer(settings, run_dir, callbacks, loggers)
            found = checkpoint_to_resume(run_dir) if ranks.is_first() else None  # reads every byte: once is enough
            if ranks.is_first():
                keep_partition(run_dir, data.faces.source, data.digests, resumed=found is not None)
        name = ranks.broadcast(str(found) if found else None)
        checkpoint = Path(name) if name else None
        if trainer.is_global_zero:
            _announce(settings, data, classifier, trainer, run_dir, checkpoint)
        failed = True
        try:
            tracking.log_start(loggers, settings, results.class_counts(data))
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            metrics = results.write(settings, data, classifier, trainer, run_dir, history)
            failed = False
        finally:
            tracking.finish(loggers, failed=failed)
        if place:
            ranks.disconnect()
    return metrics


@contextmanager
def _full_disk_told(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{error.filename or run_dir}: {error.strerror}; make room, then go on with "
            f"`python train.py resume={run_dir}`"
        ) from error


def make_classifier(settings: Settings, data: FERDataModule) -> FERClassifier:
    """The untrained classifier of a config, for the classes of `data` and weighed by what is trained on.

    Raises:
        UserError: the network or the loss cannot be.
    """
    imbalance = settings["imbalance"]
    classifier = FERClassifier(
        classes=list(data.faces.classes),
        class_counts=data.class_counts.tolist(),
        model=settings["model"],
        loss=imbalance["loss"],
        optimizer=settings["optimizer"],
        schedule=settings["schedule"],
        monitor=settings["monitor"],
        head=imbalance.get("head"),
        posthoc_tau=imbalance.get("posthoc_tau", 0.0),
        retrain_after=imbalance.get("retrain_after"),
        channels_last=settings["trainer"]["channels_last"],
        seed=settings["seed"],
    )
    if not getattr(classifier.loss, "soft_targets", True):
        loss = f"{type(classifier.loss).__name__} is defined for one true class"
        if data.mix is not None:
            raise UserError(f"imbalance={imbalance['name']} and mixing contradict each other: {loss}; use mix=none")
        if data.faces.targets is not None and not data.draw_labels:
            raise UserError(
                f"imbalance={imbalance['name']} and data.target=crossentropy contradict each other: {loss}; use "
                "data.target=probability or majority"
            )
    return classifier


def make_trainer(settings: Settings, run_dir: Path, callbacks: list[L.Callback], loggers: list[Any]) -> L.Trainer:
    """Lightning's Trainer, one of several ranks where the environment says so; a progress bar only where someone
    watches."""
    arguments = dict(settings["trainer"])
    del arguments["channels_last"]
    bar = arguments.pop("progress_bar") and on_terminal()
    place = ranks.started_outside()
    if bar:
        callbacks = [*callbacks, ProgressBar(settings["data"]["batch_size"])]
    arguments["devices"] = devices.chosen(settings["trainer"], place.local_world if place else 1)
    if place:
        # The process group is there by now; its backends follow from the machine.
        arguments |= {"strategy": OrderedDDP(), "num_nodes": place.nodes, "use_distributed_sampler": False}
    try:
        return L.Trainer(
            default_root_dir=run_dir,
            callbacks=callbacks,
            logger=loggers,
            num_sanity_val_steps=0,
            enable_progress_bar=bar,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, L.callbacks.Checkpoint) for c in callbacks),
            # Named, since Lightning would guess otherwise, and take a batch script of SLURM for one of its tasks.
            plugins=[WholeCheckpointIO(), TorchElasticEnvironment() if place else LightningEnvironment()],
            **arguments,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _announce(
    settings: Settings,
    data: FERDataModule,
    classifier: FERClassifier,
    trainer: L.Trainer,
    run_dir: Path,
    checkpoint: Path | None,
) -> None:
    facts = results.about(settings, data, classifier, trainer, run_dir)
    for line in (
        f"data     {facts['data']}, protocol {facts['protocol']}: {facts['images']}",
        *([f"cleaned  {data.cleaned}"] if data.cleaned else []),
        f"training {facts['imbalance']}: "
        + ", ".join(f"{c} {n:,}" for c, n in zip(data.faces.classes, data.class_counts, strict=True)),
        f"network  {facts['network']}; {facts['hardware']}",
        f"run      {run_dir}" + (f", gone on with from {checkpoint.name}" if checkpoint else ""),
    ):
        log.info(line)
        print(line, flush=True)


def quiet() -> None:
    """Silence what libraries say of themselves; what they say of the run still shows."""
    logging.raiseExceptions = False  # of a full disk that the log is on, the run tells once
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Loaders here have no workers by design.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The first and last batch of an epoch are logged in any case.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # A node of a cluster may train without it: the ranks are started here.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    # What is logged per epoch is the same on every rank already.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
