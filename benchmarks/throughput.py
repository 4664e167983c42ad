"""Images per second of a complete training job against a bare PyTorch loop over the same network and one fixed batch.

    python benchmarks/throughput.py [--rounds 5] [--steps 30] [overrides …]

The two alternate in one process, and the ratio is taken within each round, so that other load on the machine slows both
alike. The first steps, in which memory is allocated, count for neither. Prints a row per round, then the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir

from fer_lightning.app import CONF
from fer_lightning.config import instantiate, schema
from fer_lightning.config.resolve import resolve
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.training.callbacks import History
from fer_lightning.training.imbalance import Stage, Strategy
from fer_lightning.training.job import make_classifier, make_data
from fer_lightning.training.optim import parameter_groups
from fer_lightning.training.trainer import make_trainer, quiet

WARM_UP = 5
"""Steps at the start of each measurement that are not timed."""


class Stopwatch(L.Callback):
    """Images per second of an epoch after its first steps."""

    started = images = seconds = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        outputs["loss"].item()  # waits for the device
        if batch_idx + 1 == WARM_UP:
            self.started = time.perf_counter()
        elif batch_idx >= WARM_UP:
            self.images += len(batch.labels)
            self.seconds = time.perf_counter() - self.started


def settings_of(overrides: list[str]) -> dict[str, Any]:
    """The config of a job that trains and does nothing else."""
    schema.register()
    lean = ["logger=none", "callbacks=none", "trainer.progress_bar=false", "trainer.limit_val_batches=0"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", [*lean, *overrides]))


class BareLoop:
    """What one would write by hand: no data, no augmentation, no metrics."""

    def __init__(self, settings: dict[str, Any], device: torch.device) -> None:
        self.network = instantiate.network(settings["model"], 7).to(device)
        self.network.arrange(device, channels_last=True)
        groups = parameter_groups(self.network, settings["optimizer"]["weight_decay"])
        self.optimizer = instantiate.call("optimizer", settings["optimizer"], groups)
        self.clip = settings["trainer"]["gradient_clip_val"]
        self.bf16 = settings["trainer"]["precision"] == "bf16-mixed"
        n = settings["data"]["batch_size"]
        self.images = torch.rand(n, 1, 48, 48, device=device)
        self.labels = torch.randint(0, 7, (n,), device=device)
        self.device = device

    def images_per_second(self, steps: int) -> float:
        """Train for so many steps after the warm-up."""
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                started = time.perf_counter()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                loss = F.cross_entropy(self.network(self.images), self.labels)
            self.optimizer.zero_grad()
            loss.backward()
            if self.clip:
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            self.optimizer.step()
            loss.item()  # waits for the device
        return steps * len(self.labels) / (time.perf_counter() - started)


def job_images_per_second(settings: dict[str, Any], strategy: Strategy, data: FERDataModule, steps: int) -> float:
    """Train as a job does for one epoch of so many steps after the warm-up, without validation."""
    one_epoch = settings["trainer"] | {"max_epochs": 1, "limit_train_batches": WARM_UP + steps}
    classifier = make_classifier(settings | {"trainer": one_epoch}, strategy, data, Stage(0, 1))
    with tempfile.TemporaryDirectory() as folder:
        history, stopwatch = History(Path(folder) / "metrics.csv"), Stopwatch()
        trainer = make_trainer(one_epoch, Path(folder), [stopwatch], history, [], max_epochs=1)
        with contextlib.redirect_stdout(None):
            trainer.fit(classifier, datamodule=data)
    return stopwatch.images / stopwatch.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    arguments, overrides = parser.parse_known_args()
    quiet()
    settings = settings_of(overrides or ["experiment=report_weighted", "data=synthetic", "data.batch_size=64"])
    strategy = Strategy.from_config(settings["imbalance"])
    data = make_data(settings, strategy)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bare = BareLoop(settings, device)
    rows = []
    for number in range(arguments.rounds):
        # The order of the two alternates as well.
        pair = [
            lambda: bare.images_per_second(arguments.steps),
            lambda: job_images_per_second(settings, strategy, data, arguments.steps),
        ]
        order = (0, 1) if number % 2 == 0 else (1, 0)
        speed = {i: pair[i]() for i in order}
        rows.append((speed[0], speed[1], speed[1] / speed[0]))
        print(f"round {number}: bare {speed[0]:.1f}, job {speed[1]:.1f} images/s, ratio {rows[-1][2]:.3f}", flush=True)
    bare_speed, job_speed, ratio = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"median:  bare {bare_speed:.1f}, job {job_speed:.1f} images/s, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
