"""One job: data, training, the best checkpoint scored once, the run folder."""

from __future__ import annotations

import errno
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch

from fer_lightning import __version__
from fer_lightning.config import instantiate
from fer_lightning.config.dataset import load_parts
from fer_lightning.config.validation import check_monitor
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.data.seeding import stream_seed
from fer_lightning.distributed import ranks
from fer_lightning.distributed.signals import handled
from fer_lightning.errors import UserError
from fer_lightning.report import tracking
from fer_lightning.runs.checkpoints import read_checkpoint
from fer_lightning.runs.folder import BEST, CHECKPOINTS, LAST, checkpoint_to_resume, keep_partition
from fer_lightning.runs.results import Metrics, git_commit
from fer_lightning.training import fine_tuning, scoring
from fer_lightning.training.callbacks import History, PatientStopping
from fer_lightning.training.imbalance import Stage, Strategy
from fer_lightning.training.module import FERClassifier
from fer_lightning.training.trainer import make_trainer, quiet

log = logging.getLogger(__name__)

Settings = Mapping[str, Any]
"""A resolved config as plain containers."""

FIRST_STAGE = "first_stage"
"""Folder, under checkpoints/, of the stage before the last one."""

START = "start.ckpt"
"""In it, the checkpoint that the last stage starts from."""


class Fitted(NamedTuple):
    """What a call of `Trainer.fit` leaves."""

    trainer: L.Trainer
    classifier: FERClassifier
    history: History


def run(settings: Settings, run_dir: Path) -> Metrics:
    """Train as configured, score the best checkpoint on every test image and fill the run folder.

    Resumes from the folder's newest whole checkpoint, if it holds one. With several devices every rank runs this.

    Args:
        settings: the resolved config.
        run_dir: the run folder, see `fer_lightning.runs.folder.enter`.

    Returns:
        What metrics.json holds: names to numbers, see the README.

    Raises:
        UserError: an error of the user, before training starts where it can be known by then.
        Interrupted: a signal asked the run to end; it can be resumed.
    """
    quiet()
    place = ranks.started_outside()
    with handled(), _full_disk_reported(run_dir):
        if place:
            ranks.connect()
        L.seed_everything(settings["seed"], workers=True, verbose=False)
        strategy = Strategy.from_config(settings["imbalance"])
        data = ranks.first_alone(lambda: make_data(settings, strategy))
        with ranks.agreeing():
            check_monitor(settings["monitor"], data.faces.classes)
            loggers = instantiate.named("logger", settings["logger"])
        job = _Job(settings, run_dir, strategy, data, loggers)
        failed = True
        try:
            metrics = job.run()
            failed = False
        finally:
            tracking.finish(loggers, failed=failed)
        if place:
            ranks.disconnect()
    return metrics


class _Job:
    def __init__(
        self, settings: Settings, run_dir: Path, strategy: Strategy, data: FERDataModule, loggers: list[Any]
    ) -> None:
        self.settings, self.run_dir, self.strategy, self.data, self.loggers = settings, run_dir, strategy, data, loggers
        self.checkpoints = run_dir / CHECKPOINTS
        self.announced = False

    def run(self) -> Metrics:
        """Train stage after stage, then score."""
        *before, last = self.strategy.stages(self.settings["trainer"]["max_epochs"])
        resumed = self._to_resume(self.checkpoints)
        for stage in before if resumed is None else []:
            folder = self.checkpoints / FIRST_STAGE
            first = self._fit(stage, folder, self._to_resume(folder))
            resumed = self._start_of(last, first, folder)
        fitted = self._fit(last, self.checkpoints, resumed)
        return self._score(fitted)

    def _to_resume(self, folder: Path) -> Path | None:
        """The newest whole checkpoint of a folder; every byte of it is read, by rank 0 only."""
        found = checkpoint_to_resume(folder) if ranks.is_first() else None
        name = ranks.broadcast(str(found) if found else None)
        return Path(name) if name else None

    def _fit(self, stage: Stage, folder: Path, checkpoint: Path | None) -> Fitted:
        settings = self.settings
        with ranks.agreeing():
            classifier = make_classifier(settings, self.strategy, self.data, stage)
            callbacks = instantiate.named("callbacks", _in_folder(settings["callbacks"], self.checkpoints, folder))
            if stage.end != settings["trainer"]["max_epochs"]:  # the next stage starts at a fixed epoch
                callbacks = [c for c in callbacks if not isinstance(c, PatientStopping)]
            history = History(self.run_dir / "metrics.csv")
            trainer = make_trainer(
                settings["trainer"],
                self.run_dir,
                [*callbacks, history],
                self.loggers,
                batch_size=settings["data"]["batch_size"],
                max_epochs=stage.end,
            )
            if not self.announced and ranks.is_first():
                resumed = checkpoint is not None
                keep_partition(self.run_dir, self.data.faces.source, self.data.digests, resumed=resumed)
        if not self.announced:
            self.announced = True
            if trainer.is_global_zero:
                self._announce(classifier, trainer, checkpoint)
            tracking.log_start(self.loggers, settings, scoring.class_counts(self.data))
        trainer.fit(classifier, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        return Fitted(trainer, classifier, history)

    def _start_of(self, stage: Stage, first: Fitted, folder: Path) -> Path:
        """The checkpoint that a stage starts from: the backbone of the best one before it, and a new head."""
        path = folder / START
        torch.manual_seed(stream_seed("head", self.settings["seed"], stage.first))
        new = make_classifier(self.settings, self.strategy, self.data, stage).state_dict()
        if ranks.is_first():
            last = read_checkpoint(folder / LAST)
            best = read_checkpoint(folder / BEST)["state_dict"] if (folder / BEST).is_file() else last["state_dict"]
            weights = fine_tuning.with_backbone_of(new, best)
            start = fine_tuning.next_stage(last, weights, keep_callbacks=(first.history.state_key,))
            first.trainer.strategy.checkpoint_io.save_checkpoint(start, path)
        first.trainer.strategy.barrier("start of the next stage")
        return path

    def _score(self, fitted: Fitted) -> Metrics:
        trainer, classifier, history = fitted
        best = scoring.best_checkpoint(trainer)
        return scoring.write(
            fitted.trainer,
            classifier,
            self.data,
            self.run_dir,
            history,
            best=best,
            monitor=self.settings["monitor"],
            twins=self.settings["data"]["twins"],
            about=self._about(classifier, trainer),
            loggers=self.loggers,
        )

    def _about(self, classifier: FERClassifier, trainer: L.Trainer) -> dict[str, str]:
        """A description of the run, for the head of its report."""
        settings, data = self.settings, self.data
        device = trainer.strategy.root_device
        hardware = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
        )
        parameters = sum(p.numel() for p in classifier.network.parameters())
        model, parts = settings["model"], data.parts
        name = str(model["_target_"]).rpartition(".")[2] + (f"-{model['depth']}" if "depth" in model else "")
        network = [name, *([f"{model['stem']} stem"] if "stem" in model else []), f"{parameters:,} parameters"]
        return {
            "name": "/".join(self.run_dir.parts[-2:]),
            "data": data.faces.source,
            "protocol": settings["protocol"]["name"],
            "images": f"{len(parts.train):,} train, {len(parts.val):,} val, {len(parts.test):,} test",
            **({"cleaned": data.cleaned} if data.cleaned else {}),
            "imbalance": self.strategy.name,
            "network": ", ".join(network),
            "seed": str(settings["seed"]),
            "hardware": f"{hardware}, {settings['trainer']['precision']}, {torch.get_num_threads()} threads",
            "versions": f"fer-lightning {__version__}, torch {torch.__version__}, lightning {version('lightning')}, "
            f"Python {platform.python_version()}",
            "commit": git_commit(),
            "date": time.strftime("%Y-%m-%d %H:%M"),
        }

    def _announce(self, classifier: FERClassifier, trainer: L.Trainer, checkpoint: Path | None) -> None:
        data, facts = self.data, self._about(classifier, trainer)
        counts = ", ".join(f"{c} {n:,}" for c, n in zip(data.faces.classes, data.class_counts, strict=True))
        for line in (
            f"data     {facts['data']}, protocol {facts['protocol']}: {facts['images']}",
            *([f"cleaned  {data.cleaned}"] if data.cleaned else []),
            f"training {facts['imbalance']}: {counts}",
            f"network  {facts['network']}; {facts['hardware']}",
            f"run      {self.run_dir}" + (f", resumed from {checkpoint.name}" if checkpoint else ""),
        ):
            log.info(line)
            print(line, flush=True)


def make_data(settings: Settings, strategy: Strategy) -> FERDataModule:
    """The data module of a config.

    Raises:
        UserError: the source, the protocol, the cleaning or the resampling is invalid.
    """
    faces, parts, cleaned, digests = load_parts(settings)
    data = settings["data"]
    return FERDataModule(
        faces,
        parts,
        resample=strategy.resample,
        sampler=strategy.sampler,
        sampled_from=strategy.sampled_from(settings["trainer"]["max_epochs"]),
        augment=instantiate.node("augment", settings["augment"]),
        mix=strategy.mix or instantiate.node("mix", settings.get("mix")),
        batch_size=data["batch_size"],
        eval_batch_size=data["eval_batch_size"],
        seed=settings["seed"],
        draw_labels=data.get("target") == "probability",
        cleaned=cleaned,
        digests=digests,
    )


def make_classifier(settings: Settings, strategy: Strategy, data: FERDataModule, stage: Stage) -> FERClassifier:
    """The untrained classifier of a stage, for the classes and the training images of `data`.

    Raises:
        UserError: the network or the loss is invalid, or does not go with the data.
    """
    epochs = settings["trainer"]["max_epochs"]
    weighted_from = strategy.weighted_from(epochs)
    classifier = FERClassifier(
        classes=list(data.faces.classes),
        class_counts=data.class_counts.tolist(),
        model=settings["model"],
        loss=strategy.loss,
        optimizer=settings["optimizer"],
        schedule=settings["schedule"],
        monitor=settings["monitor"],
        head_scale=strategy.head_scale,
        posthoc_tau=strategy.posthoc_tau,
        first_epoch=stage.first,
        weighted_from=weighted_from,
        first_scored_epoch=max(weighted_from, strategy.sampled_from(epochs)) if stage.end == epochs else 0,
        head_only=stage.head_only,
        channels_last=settings["trainer"]["channels_last"],
        seed=settings["seed"],
    )
    if not getattr(classifier.loss, "soft_targets", True):
        loss = f"{type(classifier.loss).__name__} is defined for one true class"
        if data.mix is not None:
            raise UserError(f"imbalance={strategy.name} contradicts mixing: {loss}; use mix=none")
        if data.faces.targets is not None and not data.draw_labels:
            raise UserError(
                f"imbalance={strategy.name} contradicts data.target=crossentropy: {loss}; use data.target=probability "
                "or majority"
            )
    return classifier


def _in_folder(nodes: Mapping[str, Any] | None, checkpoints: Path, folder: Path) -> dict[str, Any]:
    """Callback nodes that keep their checkpoints in another folder."""
    return {
        name: {**node, "dirpath": str(folder)} if node and node.get("dirpath") == str(checkpoints) else node
        for name, node in (nodes or {}).items()
    }


@contextmanager
def _full_disk_reported(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{error.filename or run_dir}: {error.strerror}; make room, then resume with "
            f"`python train.py resume={run_dir}`"
        ) from error
