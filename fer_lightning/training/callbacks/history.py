"""metrics.csv, one row per epoch, and the speed of training."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pandas as pd

from fer_lightning.report.files import write_atomically
from fer_lightning.runs.results import git_commit

log = logging.getLogger(__name__)


class History(L.Callback):
    """Writes metrics.csv after each epoch and measures images per second.

    Its state is part of checkpoints, so that a resumed run has every epoch once. Epochs without validation have no
    validation scores.

    Attributes:
        rows: one mapping per epoch, as in the file.
        seconds: duration of all training batches so far, without validation.
        images: number of training images that all devices have processed so far.
        epoch_seconds: as `seconds`, of this epoch.
        epoch_images: as `images`, of this epoch.
        commits: of the source tree, of the first start and of each later one that had another.

    Args:
        path: where metrics.csv is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.seconds, self.images = 0.0, 0
        self.epoch_seconds, self.epoch_images, self._since = 0.0, 0, 0.0
        self._earlier, self._started = 0.0, 0.0
        self._validation: dict[str, float] = {}
        self.commits = [git_commit()]

    @property
    def fit_seconds(self) -> float:
        """Duration of training and validation so far, without interruptions."""
        return self._earlier + (time.perf_counter() - self._started if self._started else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": [dict(row) for row in self.rows],
            "seconds": self.seconds,
            "images": self.images,
            "epoch_seconds": self.epoch_seconds,
            "epoch_images": self.epoch_images,
            "fit_seconds": self.fit_seconds,
            "validation": self._validation,
            "commits": self.commits,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.seconds, self.images = (state_dict[name] for name in ("rows", "seconds", "images"))
        self.epoch_seconds, self.epoch_images = state_dict["epoch_seconds"], state_dict["epoch_images"]
        self._earlier, self._validation = state_dict["fit_seconds"], state_dict["validation"]
        self.commits = list(dict.fromkeys([*state_dict.get("commits", []), *self.commits]))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()
        self._since = self._started - self.epoch_seconds  # an interrupted epoch has run for that long

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._earlier, self._started = self.fit_seconds, 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def epoch_speed(self) -> float:
        """Images per second of this epoch."""
        return self.epoch_images / self.epoch_seconds if self.epoch_seconds else 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since, self.epoch_seconds, self.epoch_images = time.perf_counter(), 0.0, 0
        self._validation = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.epoch_images += len(batch.labels) * trainer.world_size
        self.epoch_seconds = time.perf_counter() - self._since

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # By now the device has finished the last step, whose loss was read.
        if trainer.state.fn == "fit":
            self.epoch_seconds = time.perf_counter() - self._since

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A copy, since Lightning never clears its own: the next epochs may have no validation.
        self._validation = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self._validation:  # the module has read the last loss only after the callbacks' end of the batch
            self.epoch_seconds = time.perf_counter() - self._since
        self.seconds += self.epoch_seconds
        self.images += self.epoch_images
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/images_per_second": round(self.epoch_speed, 1),
        }
        own = {n: float(v) for n, v in trainer.callback_metrics.items() if not n.startswith("val/")}
        # Lightning asks the module for its training scores after the callbacks.
        scores = own | self._validation | pl_module.training_scores()
        row |= {name: scores[name] for name in sorted(scores) if not name.endswith("_step")}
        self.rows.append(row)
        if trainer.is_global_zero:
            self.write()
            self._report(trainer, row)

    def write(self) -> None:
        """Write the rows to the file."""
        write_atomically(self.path, pd.DataFrame(self.rows).to_csv(index=False, lineterminator="\n").encode())

    def _report(self, trainer: L.Trainer, row: dict[str, float]) -> None:
        names = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/f1_macro")
        values = ", ".join(f"{name} {row[name]:.4f}" for name in names if name in row)
        line = f"{epoch_of(trainer)}: {values}, {row['train/images_per_second']:.0f} images/s"
        log.info(line)
        print(line, flush=True)


def epoch_of(trainer: L.Trainer) -> str:
    """ "epoch 3/40", or "epoch 3" where the number of epochs is not limited."""
    limited = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if limited else "")
