"""One job: data, training, the best checkpoint scored once, the run folder."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping

from fer_lightning.config import instantiate
from fer_lightning.config.dataset import load_parts
from fer_lightning.config.validation import check_monitor
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.data.loader import Augment
from fer_lightning.data.seeding import stream_seed
from fer_lightning.data.table import SIDE
from fer_lightning.data.transforms.augment import BatchAugment
from fer_lightning.distributed import ranks
from fer_lightning.distributed.signals import handled
from fer_lightning.errors import UserError, flat
from fer_lightning.report import tracking
from fer_lightning.runs.checkpoints import checkpoint_to_resume, read_checkpoint
from fer_lightning.runs.folder import BEST, CHECKPOINTS, LAST, keep_partition
from fer_lightning.runs.results import Metrics
from fer_lightning.training import scoring
from fer_lightning.training.callbacks import History, LastCheckpoint
from fer_lightning.training.description import announce, describe
from fer_lightning.training.distillation import Distillation, distillation
from fer_lightning.training.finetuning import initialise
from fer_lightning.training.imbalance import Stage, Strategy
from fer_lightning.training.module import FERClassifier
from fer_lightning.training.trainer import check_limits, make_trainer, quiet

log = logging.getLogger(__name__)

Settings = Mapping[str, Any]
"""A resolved config as plain containers."""

FIRST_STAGE = "first_stage"
"""Folder, under checkpoints/, of the stage before the last one."""

START = "start.ckpt"
"""In it, the checkpoint that the last stage starts from."""

BACKBONE = "network.backbone."
"""Prefix of the backbone's parameters and buffers in a FERClassifier's state dict."""


def run(settings: Settings, run_dir: Path) -> Metrics:
    """Train as configured, score the best checkpoint on every test image and fill the run folder.

    Resumes from the folder's newest intact checkpoint, if it holds one. With several devices every rank runs this.

    Args:
        settings: the resolved config.
        run_dir: the run folder, see `fer_lightning.runs.folder.enter`.

    Returns:
        The content of metrics.json: names to numbers, see the README.

    Raises:
        UserError: bad input or configuration, before training starts where it can be known by then.
        Interrupted: a signal asked the run to end; it can be resumed.
    """
    quiet()
    distributed = ranks.started_outside() is not None
    with handled(), _full_disk_reported(run_dir):
        if distributed:
            ranks.connect()
        L.seed_everything(settings["seed"], workers=True, verbose=False)
        strategy = Strategy.from_config(settings["imbalance"])
        data = ranks.first_alone(lambda: make_data(settings, strategy))
        with ranks.agreeing():
            _check_monitors(settings, data.faces.classes)
            check_limits(settings["trainer"], data)
            loggers = instantiate.named("logger", settings["logger"])
        job = _Job(settings, run_dir, strategy, data, loggers)
        failed = True
        try:
            metrics = job.run()
            failed = False
        finally:
            tracking.finish(loggers, failed=failed)
        if distributed:
            ranks.disconnect()
    return metrics


class _Job:
    def __init__(
        self, settings: Settings, run_dir: Path, strategy: Strategy, data: FERDataModule, loggers: list[Any]
    ) -> None:
        self.settings, self.run_dir, self.strategy, self.data, self.loggers = settings, run_dir, strategy, data, loggers
        self.checkpoints, self.history = run_dir / CHECKPOINTS, History(run_dir / "metrics.csv")
        self.announced = False
        with ranks.agreeing():
            self.distillation = distillation(
                settings.get("distill"),
                data.faces.classes,
                data.faces.source,
                data.digests,
                trust=settings.get("trust", False),
            )

    def run(self) -> Metrics:
        """Train stage after stage, then score."""
        settings = self.settings
        freeze_epochs = settings.get("finetune", {}).get("freeze_epochs", 0)
        *before, last = self.strategy.stages(settings["trainer"]["max_epochs"], freeze_epochs)
        resumed = self._to_resume(self.checkpoints)
        for stage in before if resumed is None else []:
            folder = self.checkpoints / FIRST_STAGE
            trained = self._fit(stage, folder, self._to_resume(folder))
            resumed = self._start_of(last, trained, folder)
        trainer = self._fit(last, self.checkpoints, resumed)
        return scoring.write(settings, self.run_dir, self.data, trainer, self.history)

    def _to_resume(self, folder: Path) -> Path | None:
        """The newest intact checkpoint of a folder; every byte of it is read, by rank 0 only."""
        newest = checkpoint_to_resume(folder) if ranks.is_first() else None
        path = ranks.broadcast(str(newest) if newest else None)
        return Path(path) if path else None

    def _fit(self, stage: Stage, folder: Path, checkpoint: Path | None) -> L.Trainer:
        settings = self.settings
        with ranks.agreeing():
            classifier = make_classifier(settings, self.strategy, self.data, stage)
            classifier.distillation = self.distillation
            _check_sides(self.data.augment, classifier, self.distillation)
            callbacks = instantiate.named("callbacks", _in_folder(settings["callbacks"], self.checkpoints, folder))
            if stage.end != settings["trainer"]["max_epochs"]:  # the next stage starts at a fixed epoch
                callbacks = [c for c in callbacks if not isinstance(c, EarlyStopping)]
            trainer = make_trainer(
                settings["trainer"], self.run_dir, callbacks, self.history, self.loggers, max_epochs=stage.end
            )
            if not self.announced and ranks.is_first():
                if checkpoint is not None:
                    _check_fits(checkpoint, classifier)
                resumed = checkpoint is not None
                keep_partition(self.run_dir, self.data.faces.source, self.data.digests, resumed=resumed)
        if not self.announced:
            self.announced = True
            if trainer.is_global_zero:
                facts = describe(settings, self.run_dir, self.data, classifier, trainer.strategy.root_device)
                announce(facts, self.data, self.run_dir, checkpoint)
            tracking.log_start(self.loggers, settings, scoring.class_counts(self.data))
        if checkpoint is None:
            with ranks.agreeing():
                start = initialise(
                    classifier.network, settings.get("init_from"), self.data.faces, trust=settings.get("trust", False)
                )
            if start and trainer.is_global_zero:
                log.info("start    %s", start)
                print(f"start    {start}", flush=True)
        try:
            trainer.fit(classifier, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        except MisconfigurationException as error:  # of what the config adds to the trainer and the callbacks
            raise UserError(f"trainer: {flat(error, 300)}") from error
        except ValueError as error:
            if "val_check_interval" not in str(error):
                raise
            raise UserError(f"trainer.val_check_interval: {flat(error, 300)}") from error
        return trainer

    def _start_of(self, stage: Stage, trained: L.Trainer, folder: Path) -> Path:
        """A checkpoint that the next stage continues from: with the last weights (averaged ones if weights are
        averaged), or with the best backbone so far and a new head, the classifier re-training (cRT) of Kang et al.
        2020, arXiv:1910.09217, section 4.1.

        Epochs and steps continue to count; optimizer, schedule, best scores and averages start again.
        """
        path = folder / START
        if not any(isinstance(c, LastCheckpoint) for c in trained.checkpoint_callbacks):
            trained.save_checkpoint(folder / LAST, weights_only=False)
        torch.manual_seed(stream_seed("head", self.settings["seed"], stage.first))
        new = make_classifier(self.settings, self.strategy, self.data, stage).state_dict()
        if ranks.is_first():
            last = read_checkpoint(folder / LAST)
            dropped = ("current_model_state", "averaging_state", "training_sums")
            start = {name: value for name, value in last.items() if name not in dropped}
            if stage.new_head:
                best = read_checkpoint(folder / BEST)["state_dict"] if (folder / BEST).is_file() else last["state_dict"]
                start["state_dict"] = {name: best[name] if name.startswith(BACKBONE) else new[name] for name in new}
            start["optimizer_states"], start["lr_schedulers"] = [], []  # without a state Lightning leaves the new ones
            start["callbacks"] = {self.history.state_key: last["callbacks"][self.history.state_key]}
            trained.strategy.checkpoint_io.save_checkpoint(start, path)
        trained.strategy.barrier("start of the next stage")
        return path


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
        epochs=settings["trainer"]["max_epochs"],
        resident_gib=data["resident_gib"],
        draw_labels=data.get("target") == "probability",
        limit_val=settings["trainer"]["limit_val_batches"],
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
        layer_decay=settings.get("finetune", {}).get("layer_decay", 1.0),
        backbone_lr_factor=settings.get("finetune", {}).get("backbone_lr_factor", 1.0),
        channels_last=settings["trainer"]["channels_last"],
        seed=settings["seed"],
    )
    classifier.unaugmented = None if stage.head_only else data.unaugmented  # a frozen network keeps its statistics
    compiled = settings["trainer"]["compile"]
    classifier.compile_mode = ("default" if compiled is True else compiled) or None
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


def _check_sides(augment: Augment | None, classifier: FERClassifier, distillation: Distillation | None) -> None:
    """Raises UserError if images have sizes that the network or a teacher cannot take."""
    augmented = augment.sides() if isinstance(augment, BatchAugment) else []
    networks = [("model", classifier.network)]
    networks += [("a teacher", teacher.network) for teacher in (distillation.teachers if distillation else ())]
    for name, network in networks:
        for side in dict.fromkeys([SIDE, *augmented]):
            try:
                network.check_side(side)
            except ValueError as error:
                if side != SIDE:
                    remedy = "which augment.crop and augment.first_side ask for: set them to null or to sizes that fit"
                elif network.preprocessing.size is not None:
                    remedy = "set model.preprocessing.size to a size that fits"
                else:
                    remedy = "the size of the data: choose another network, or set model.preprocessing.size"
                raise UserError(f"{name}: {error}, {remedy}") from error


def _check_fits(checkpoint: Path, classifier: FERClassifier) -> None:
    """Raises UserError if a changed config has another network than the checkpoint."""
    state, own = read_checkpoint(checkpoint)["state_dict"], classifier.state_dict()
    wrong = {(n, tuple(t.shape)) for n, t in state.items()} ^ {(n, tuple(t.shape)) for n, t in own.items()}
    if wrong:
        name, shape = min(wrong)
        raise UserError(
            f"{checkpoint}: its weights do not fit the configured network ({name} {list(shape)}): leave the settings "
            "of the network as they were, or start another run"
        )


def _check_monitors(settings: Settings, classes: tuple[str, ...]) -> None:
    """Raises UserError if `monitor` or a callback names a validation score that does not exist."""
    check_monitor(settings["monitor"]["metric"], settings["monitor"]["mode"], classes)
    nodes = {name: node for name, node in (settings["callbacks"] or {}).items() if node}
    if all(
        str(node.get(instantiate.TARGET)).startswith((instantiate.OWN, *instantiate.LIBRARY_TARGETS))
        for node in nodes.values()
    ):  # which log no others
        for name, node in nodes.items():
            if node.get("monitor") is not None:
                check_monitor(node["monitor"], node.get("mode", "min"), classes, f"callbacks.{name}.monitor")


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
