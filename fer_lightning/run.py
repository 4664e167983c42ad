"""One job: data, training, the best checkpoint scored once, the run folder."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from fer_lightning import build, results
from fer_lightning.check import check, check_monitor
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.data.faces import FaceTable
from fer_lightning.data.protocols import partition
from fer_lightning.data.synthetic import synthetic
from fer_lightning.errors import UserError
from fer_lightning.model.classifier import FERClassifier
from fer_lightning.report import tracking
from fer_lightning.report.files import write_atomically
from fer_lightning.report.history import History, ProgressBar, on_terminal

log = logging.getLogger(__name__)

Settings = Mapping[str, Any]
"""A resolved config as plain containers."""


def run(cfg: DictConfig) -> dict[str, float | str]:
    """Train as configured, score the best checkpoint on every test image and fill the run folder.

    Returns:
        What metrics.json holds: names to numbers, see the README.

    Raises:
        UserError: whatever the user can mend, before training starts where it can be known by then.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    settings = resolve(cfg)
    check(settings)
    quiet()
    L.seed_everything(settings["seed"], workers=True, verbose=False)
    data = load_data(settings)
    check_monitor(settings["monitor"], data.faces.classes)
    classifier = make_classifier(settings, data)
    _claim(run_dir / "checkpoints")
    write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)).encode())
    loggers = build.named("logger", settings["logger"])
    history = History(run_dir / "metrics.csv")
    trainer = make_trainer(settings, run_dir, [*build.named("callbacks", settings["callbacks"]), history], loggers)
    _announce(settings, data, classifier, trainer, run_dir)
    failed = True
    try:
        tracking.log_config(loggers, settings)
        started = time.perf_counter()
        trainer.fit(classifier, datamodule=data)
        seconds = time.perf_counter() - started
        metrics = results.write(settings, data, classifier, trainer, run_dir, history, seconds)
        failed = False
    finally:
        tracking.finish(loggers, failed=failed)
    return metrics


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The config with its interpolations filled in, as plain containers."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)  # type: ignore[assignment]
    data = settings["data"]
    if data["path"] is not None:  # so that the run can be evaluated from another folder
        data["path"] = str(Path(data["path"]).expanduser().absolute())
    return settings


def load_faces(settings: Settings) -> FaceTable:
    """The table that the `data` group names.

    Raises:
        UserError: the source is missing or faulty.
    """
    data = settings["data"]
    if data["name"] == "synthetic":
        faces = synthetic(**data["synthetic"])
    else:
        from fer_lightning.data import sources

        cache = {"cache_dir": Path(data["cache_dir"])} if data["cache_dir"] else {}
        faces = sources.load(data["path"] or "", **cache)
    return faces.only(data["classes"]) if data["classes"] else faces


def load_data(settings: Settings) -> FERDataModule:
    """The data module of a config.

    Raises:
        UserError: the source, the protocol or the resampling cannot be.
    """
    faces, data = load_faces(settings), settings["data"]
    return FERDataModule(
        faces,
        partition(faces, **settings["protocol"]),
        resample=build.node("imbalance.resample", settings["imbalance"]["resample"]),
        augment=build.node("augment", settings["augment"]),
        batch_size=data["batch_size"],
        eval_batch_size=data["eval_batch_size"],
        seed=settings["seed"],
    )


def make_classifier(settings: Settings, data: FERDataModule) -> FERClassifier:
    """The untrained classifier of a config, for the classes of `data` and weighed by what is trained on.

    Raises:
        UserError: the network or the loss cannot be.
    """
    return FERClassifier(
        classes=list(data.faces.classes),
        class_counts=data.class_counts.tolist(),
        model=settings["model"],
        loss=settings["imbalance"]["loss"],
        optimizer=settings["optimizer"],
        schedule=settings["schedule"],
        monitor=settings["monitor"],
        channels_last=settings["trainer"]["channels_last"],
    )


def make_trainer(settings: Settings, run_dir: Path, callbacks: list[L.Callback], loggers: list[Any]) -> L.Trainer:
    """Lightning's Trainer; a progress bar only where someone watches."""
    arguments = dict(settings["trainer"])
    del arguments["channels_last"]
    bar = arguments.pop("progress_bar") and on_terminal()
    if bar:
        callbacks = [*callbacks, ProgressBar(settings["data"]["batch_size"])]
    try:
        return L.Trainer(
            default_root_dir=run_dir,
            callbacks=callbacks,
            logger=loggers,
            num_sanity_val_steps=0,
            enable_progress_bar=bar,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, L.callbacks.Checkpoint) for c in callbacks),
            **arguments,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _claim(checkpoints: Path) -> None:
    """Make the checkpoint folder; a run never writes over another one's."""
    try:
        checkpoints.mkdir(parents=True)
    except FileExistsError:
        raise UserError(
            f"{checkpoints.parent} holds a run already; choose another with hydra.run.dir=<folder>"
        ) from None
    except OSError as error:
        raise UserError(
            f"{checkpoints.parent}: {error.strerror}; choose another with hydra.run.dir=<folder>"
        ) from error


def _announce(
    settings: Settings, data: FERDataModule, classifier: FERClassifier, trainer: L.Trainer, run_dir: Path
) -> None:
    facts = results.about(settings, data, classifier, trainer, run_dir)
    for line in (
        f"data     {facts['data']}, protocol {facts['protocol']}: {facts['images']}",
        f"training {facts['imbalance']}: "
        + ", ".join(f"{c} {n:,}" for c, n in zip(data.faces.classes, data.class_counts, strict=True)),
        f"network  {facts['network']}; {facts['hardware']}",
        f"run      {run_dir}",
    ):
        log.info(line)
        print(line, flush=True)


def quiet() -> None:
    """Silence what libraries say of themselves; what they say of the run still shows."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Loaders here have no workers by design.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The first and last batch of an epoch are logged in any case.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
