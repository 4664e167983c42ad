"""Images per second of a complete training job against a bare PyTorch loop over the same network and one fixed batch.

    python benchmarks/speed/loop.py [--cases report,laptop,…] [--rounds 5] [--steps 30] [--out FILE] [overrides …]

The job has its default augmentation, metrics and a CSV logger; the bare loop nothing of these. For validation, the job
gathers every answer and computes the scores, and the bare loop is a forward pass. The two take turns in one process,
and the ratio is taken within each round, so that other load on the machine slows both alike. The first steps, in which
memory is allocated, count for neither. Overrides, such as precision=fp32, apply to all cases.
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
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.training.callbacks import History
from fer_lightning.training.imbalance import Stage, Strategy
from fer_lightning.training.job import make_classifier, make_data
from fer_lightning.training.optim import parameter_groups
from fer_lightning.training.trainer import make_trainer, quiet

WARM_UP = 5
"""Steps at the start of each measurement that are not timed."""

CASES = {
    "report": ["experiment=report_weighted", "data.batch_size=64"],
    "laptop": ["experiment=laptop"],
    "strong_cpu": ["experiment=strong_cpu"],
    "small-batch": ["experiment=laptop", "data.batch_size=32"],
    "validation": ["experiment=laptop", "data.eval_batch_size=128"],
}


class Stopwatch(L.Callback):
    """Images per second of an epoch, or of a validation, after its first steps."""

    started = images = seconds = 0.0

    def _ended(self, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == WARM_UP:
            self.started = time.perf_counter()
        elif batch_idx >= WARM_UP:
            self.images += len(batch.labels)
            self.seconds = time.perf_counter() - self.started

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        outputs["loss"].item()  # waits for the device
        self._ended(batch, batch_idx)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ended(batch, batch_idx)


class BareLoop:
    """What one would write by hand: no data, no augmentation, no metrics."""

    def __init__(self, settings: dict[str, Any], side: int, device: torch.device) -> None:
        self.network = instantiate.network(settings["model"], 7).to(device)
        self.network.arrange(device, channels_last=True)
        groups = parameter_groups(self.network, settings["optimizer"]["weight_decay"])
        self.optimizer = instantiate.call("optimizer", settings["optimizer"], groups)
        self.clip = settings["trainer"]["gradient_clip_val"]
        self.autocast = partial(
            torch.autocast, device.type, torch.bfloat16, enabled=settings["trainer"]["precision"] == "bf16-mixed"
        )
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
                started = time.perf_counter()
            with self.autocast():
                loss = F.cross_entropy(self.network(self.images), self.labels, label_smoothing=self.smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            if self.clip:
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            self.optimizer.step()
            loss.item()  # waits for the device
        return steps * self.n / (time.perf_counter() - started)

    @torch.no_grad()
    def scored_per_second(self, steps: int) -> float:
        """The same of forward passes."""
        self.network.eval()
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                started = time.perf_counter()
            with self.autocast():
                self.network(self.whole).sum().item()
        return steps * self.eval_n / (time.perf_counter() - started)


class Job:
    """A job as `python train.py` runs it, for one epoch of so many steps after the warm-up, or for a validation."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.strategy = settings, Strategy.from_config(settings["imbalance"])
        self.data: FERDataModule = make_data(settings, self.strategy)

    def trained_per_second(self, steps: int) -> float:
        return self._speed(validate=False, limit_train_batches=WARM_UP + steps, limit_val_batches=0)

    def scored_per_second(self, steps: int) -> float:
        return self._speed(validate=True, limit_val_batches=WARM_UP + steps)

    def seconds_of_epochs(self, epochs: int) -> float:
        """Of training for whole epochs, from the first batch."""
        started = time.perf_counter()
        self._run(validate=False, epochs=epochs, limit_val_batches=0)
        return time.perf_counter() - started

    def _speed(self, *, validate: bool, **limits: Any) -> float:
        stopwatch = self._run(validate=validate, **limits)
        return stopwatch.images / stopwatch.seconds

    def _run(self, *, validate: bool, epochs: int = 1, **limits: Any) -> Stopwatch:
        trainer_group = self.settings["trainer"] | limits | {"max_epochs": epochs, "check_val_every_n_epoch": 1}
        settings = self.settings | {"trainer": trainer_group}
        classifier = make_classifier(settings, self.strategy, self.data, Stage(0, epochs))
        with tempfile.TemporaryDirectory() as folder:
            history, stopwatch = History(Path(folder) / "metrics.csv"), Stopwatch()
            loggers = [] if validate else [L.loggers.CSVLogger(folder)]
            trainer = make_trainer(trainer_group, Path(folder), [stopwatch], history, loggers, max_epochs=epochs)
            with contextlib.redirect_stdout(None):
                if validate:
                    trainer.validate(classifier, datamodule=self.data, verbose=False)
                else:
                    trainer.fit(classifier, datamodule=self.data)
        return stopwatch


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--cases", default="report,laptop,small-batch,validation", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    arguments, overrides = parser.parse_known_args()
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for case in arguments.cases.split(","):
        chosen = [CASES[case][0], "data=synthetic", *CASES[case][1:], *overrides]
        data, steps = measure.settings_of(chosen)["data"], WARM_UP + arguments.steps + 1
        drawn = {"n_train": steps * data["batch_size"], "n_val": steps * data["eval_batch_size"], "n_test": 30}
        settings = measure.settings_of([*chosen, *(f"data.synthetic.{name}={n}" for name, n in drawn.items())])
        job = Job(settings)
        side = (settings["augment"] or {}).get("crop") or 48
        bare = BareLoop(settings, side, device)
        what = "scored_per_second" if case == "validation" else "trained_per_second"
        print(case, flush=True)
        speeds = measure.take_turns(
            {name: partial(getattr(of, what), arguments.steps) for name, of in (("bare", bare), ("job", job))},
            arguments.rounds,
        )
        rows.append(
            {
                "case": case,
                "overrides": " ".join([*CASES[case], *overrides]),
                "precision": settings["trainer"]["precision"],
                "batch": settings["data"]["eval_batch_size" if case == "validation" else "batch_size"],
                "bare": statistics.median(speeds["bare"]),
                "job": statistics.median(speeds["job"]),
                **measure.ratio(speeds["job"], speeds["bare"]),
                "rounds": arguments.rounds,
                "steps": arguments.steps,
            }
        )
    measure.save(arguments.out, rows)


if __name__ == "__main__":
    main()
