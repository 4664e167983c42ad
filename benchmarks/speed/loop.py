"""Images per second of a complete training job against a bare PyTorch loop over the same network and one fixed batch.

    python benchmarks/speed/loop.py [--cases report laptop …] [--rounds 5] [--steps 40] [--out FILE] [overrides …]

The job has its default augmentation, metrics, checkpoints and a CSV logger, and strong_cpu its average of the weights;
the bare loop nothing of these. For validation and test, of as many images as PublicTest has, the job gathers every
answer and computes the scores, and the bare loop makes the forward passes. "validation, in training" first estimates
the statistics of batch norm from 2,048 training images; the bare loop passes as many in training mode.

The two take turns in one process, and the ratio is taken within each round, so that other load on the machine slows
both alike. The first steps, in which memory is allocated, count for neither. Overrides, such as precision=fp32, apply
to all cases.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import measure
import torch
import torch.nn.functional as F

from fer_lightning.config import instantiate
from fer_lightning.config.precision import BF16, FP16
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.metrics.scores import scores
from fer_lightning.report.loggers import CSV
from fer_lightning.runs.results import sums_of
from fer_lightning.training.callbacks import EMA, History, LastCheckpoint
from fer_lightning.training.imbalance import Stage, Strategy
from fer_lightning.training.job import make_classifier, make_data
from fer_lightning.training.optim import parameter_groups
from fer_lightning.training.trainer import make_trainer, quiet

WARM_UP = 5
"""Steps at the start of each measurement that are not timed."""

PUBLIC = 3589
"""Validation images of FER-2013."""

CASES = {
    "report": ["experiment=report_weighted", "protocol=kaggle", "data.batch_size=64"],
    "laptop": ["experiment=laptop"],
    "strong_cpu": ["experiment=strong_cpu"],
    "small batch": ["experiment=laptop", "data.batch_size=32"],
    "validation": ["experiment=laptop"],
    "validation, report": ["experiment=report_weighted", "protocol=kaggle"],
    "test": ["experiment=laptop"],
    "validation, in training": ["experiment=laptop"],
}


def wait() -> None:
    """For what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Stopwatch(L.Callback):
    """Images and seconds after the first steps of an epoch, or of the last pass over validation or test images.

    Args:
        steps: of an epoch that are timed; None to time the last pass over validation or test images, from its start.
        whole_fit: `begin` and `end` are called around a fit.
    """

    def __init__(self, steps: int | None, *, whole_fit: bool = False) -> None:
        self.steps, self.whole_fit = steps, whole_fit
        self.started = self.seconds = 0.0
        self.images = 0

    def begin(self) -> None:
        wait()
        self.images, self.started = 0, time.perf_counter()

    def end(self) -> None:
        wait()
        self.seconds = time.perf_counter() - self.started

    def _passed(self, batch: Any, batch_idx: int) -> None:
        self.images += len(batch.labels)
        if batch_idx + 1 == WARM_UP and self.steps:
            self.begin()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.steps and not self.whole_fit:
            self._passed(batch, batch_idx)
            if batch_idx + 1 == WARM_UP + self.steps:
                self.end()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (self.steps or self.whole_fit):
            self.begin()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if not self.steps:
            self._passed(batch, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (self.steps or self.whole_fit):
            self.end()

    on_test_start, on_test_batch_end = on_validation_start, on_validation_batch_end


class BareLoop:
    """What one would write by hand: no data, no augmentation, no metrics."""

    def __init__(self, settings: dict[str, Any], side: int, device: torch.device) -> None:
        self.network = instantiate.network(settings["model"], 7).to(device)
        self.network.arrange(device, settings["trainer"]["channels_last"])
        muon = settings["optimizer"]["_target_"].endswith(".Muon")
        groups = parameter_groups(self.network, settings["optimizer"]["weight_decay"], mark_head=muon)
        self.optimizer = instantiate.call("optimizer", settings["optimizer"], groups)
        self.clip = settings["trainer"]["gradient_clip_val"]
        precision = settings["trainer"]["precision"]
        half = {BF16: torch.bfloat16, FP16: torch.float16}.get(precision)
        self.autocast = partial(torch.autocast, device.type, half, enabled=half is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == FP16)
        if compiled := settings["trainer"]["compile"]:
            self.network.compile(mode="default" if compiled is True else compiled, dynamic=False)
        self.smoothing = settings["imbalance"]["loss"].get("label_smoothing", 0.0)
        self.n, self.eval_n = settings["data"]["batch_size"], settings["data"]["eval_batch_size"]
        self.images = torch.rand(self.n, 1, side, side, device=device)
        self.whole = torch.rand(self.eval_n, 1, 48, 48, device=device)
        self.labels = torch.randint(0, 7, (self.n,), device=device)

    def trained_per_second(self, steps: int) -> float:
        """Images per second of so many steps after the warm-up."""
        self.network.train()
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                wait()
                started = time.perf_counter()
            with self.autocast():
                loss = F.cross_entropy(self.network(self.images), self.labels, label_smoothing=self.smoothing)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            if self.clip:
                self.scaler.unscale_(self.optimizer)
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        wait()
        return steps * self.n / (time.perf_counter() - started)

    @torch.no_grad()
    def scored_per_second(self, images: int, estimated_from: int = 0) -> float:
        """Images per second of a pass over so many; before it, on the clock, others pass in training mode."""
        whole, rest = divmod(images, self.eval_n)
        batches = [self.whole] * whole + [self.whole[:rest]] * bool(rest)
        seconds = 0.0
        for _ in range(2):  # of which the second counts
            wait()
            started = time.perf_counter()
            with self.autocast():
                self.network.train()
                for _ in range(estimated_from // self.n):
                    self.network(self.images)
                self.network.eval()
                for batch in batches:
                    self.network(batch)
            wait()
            seconds = time.perf_counter() - started
        return images / seconds


class Job:
    """A job as `python train.py` runs it, for one epoch of so many steps after the warm-up, or for scoring.

    Args:
        settings: the resolved config.
        decay: of the average of the weights; None for no average.
    """

    def __init__(self, settings: dict[str, Any], decay: float | None = None) -> None:
        self.settings, self.strategy = settings, Strategy.from_config(settings["imbalance"])
        self.data: FERDataModule = make_data(settings, self.strategy)
        self.decay = decay

    def trained_per_second(self, steps: int) -> float:
        return self._speed("fit", Stopwatch(steps), limit_train_batches=WARM_UP + steps, limit_val_batches=0)

    def validated_per_second(self) -> float:
        return self._speed("validate", Stopwatch(None))

    def tested_per_second(self) -> float:
        return self._speed("test", Stopwatch(None))

    def validated_in_training_per_second(self) -> float:
        """Of the second of two validations, each after a single step of training."""
        return self._speed("fit", Stopwatch(None), epochs=2, limit_train_batches=1)

    def seconds_of_epochs(self, epochs: int, **limits: Any) -> float:
        """Of `Trainer.fit` for whole epochs, within `limits` of the trainer."""
        stopwatch = Stopwatch(None, whole_fit=True)
        self._run("fit", stopwatch, epochs=epochs, limit_val_batches=0, **limits)
        return stopwatch.seconds

    def _speed(self, what: str, stopwatch: Stopwatch, **limits: Any) -> float:
        self._run(what, stopwatch, **limits)
        assert stopwatch.seconds, "too few images for so many steps"
        return stopwatch.images / stopwatch.seconds

    def _run(self, what: str, stopwatch: Stopwatch, *, epochs: int = 1, **limits: Any) -> None:
        trainer_group = self.settings["trainer"] | limits | {"max_epochs": epochs, "check_val_every_n_epoch": 1}
        settings = self.settings | {"trainer": trainer_group}
        classifier = make_classifier(settings, self.strategy, self.data, Stage(0, epochs))
        if what != "fit":
            classifier.unaugmented = None  # a checkpoint that is scored has its statistics
        callbacks = [stopwatch, *([EMA(self.decay)] if self.decay and what == "fit" else [])]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            history = History(Path(folder) / "metrics.csv")
            loggers = [CSV(folder, name="csv", version="", flush_logs_every_n_steps=1)] if what == "fit" else []
            if what == "fit" and not stopwatch.whole_fit:
                callbacks.append(LastCheckpoint(str(Path(folder) / "checkpoints")))
            trainer = make_trainer(trainer_group, Path(folder), callbacks, history, loggers, max_epochs=epochs)
            if what == "fit":
                if stopwatch.whole_fit:
                    stopwatch.begin()
                trainer.fit(classifier, datamodule=self.data)
                if stopwatch.whole_fit:
                    stopwatch.end()
            elif what == "validate":
                for _ in range(2):
                    trainer.validate(classifier, datamodule=self.data, verbose=False)
            else:
                for _ in range(2):
                    trainer.test(classifier, datamodule=self.data, verbose=False)
                    _, labels, logits = classifier.predictions.compute()
                    scores(sums_of(logits, labels.numpy()), classifier.classes)
                    stopwatch.end()


METHODS = {
    "validation": "validated_per_second",
    "validation, report": "validated_per_second",
    "test": "tested_per_second",
    "validation, in training": "validated_in_training_per_second",
}
"""Of a `Job`, by case; `trained_per_second` for the others."""


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="twice the steps between two lines of the log")
    arguments, overrides = parser.parse_known_args()
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = measure.Results(arguments.out)
    for case in arguments.cases:
        scored = case in METHODS
        chosen = [CASES[case][0], "data=synthetic", *CASES[case][1:], *overrides]
        data, steps = measure.settings_of(chosen)["data"], WARM_UP + arguments.steps + 1
        drawn = {
            "n_train": 2100 if scored else steps * data["batch_size"],
            "n_val": PUBLIC if scored else 30,
            "n_test": PUBLIC if case == "test" else 30,
        }
        settings = measure.settings_of([*chosen, *(f"data.synthetic.{name}={n}" for name, n in drawn.items())])
        job = Job(settings, measure.decay_of(chosen))
        side = (settings["augment"] or {}).get("crop") or 48
        bare = BareLoop(settings, side, device)
        print(case, flush=True)
        estimated = settings["augment"]["batch_norm_images"] if case == "validation, in training" else 0
        ways = {
            "bare": partial(bare.scored_per_second, PUBLIC, estimated)
            if scored
            else partial(bare.trained_per_second, arguments.steps),
            "job": getattr(job, METHODS[case]) if scored else partial(job.trained_per_second, arguments.steps),
        }
        speeds = measure.take_turns(ways, arguments.rounds)
        results.add(
            {
                "case": case,
                "overrides": " ".join([*CASES[case], *overrides]),
                "precision": settings["trainer"]["precision"],
                "batch": settings["data"]["eval_batch_size" if scored else "batch_size"],
                "bare": statistics.median(speeds["bare"]),
                "job": statistics.median(speeds["job"]),
                **measure.ratio(speeds["job"], speeds["bare"]),
                "rounds": arguments.rounds,
                "steps": arguments.steps,
            }
        )


if __name__ == "__main__":
    main()
