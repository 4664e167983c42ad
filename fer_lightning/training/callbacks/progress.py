"""Progress: a bar on a terminal, a line at least every minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import RichProgressBar

log = logging.getLogger(__name__)

INTERVAL = 30.0
"""Seconds after which the next batch prints a line: where a batch takes less, lines are at most a minute apart."""


class ProgressLine(L.Callback):
    """Prints epoch, step of steps, images per second and the time left, for a log or a slow machine."""

    def __init__(self) -> None:
        self._printed = self._since = 0.0
        self._steps = self._images = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since, self._steps, self._images = time.monotonic(), 0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._printed = self._since = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._steps += 1
        self._images += len(batch.labels) * trainer.world_size
        if not self._is_due():
            return
        seconds = time.monotonic() - self._since
        text = f"{epoch_of(trainer)}, step {batch_idx + 1}/{trainer.num_training_batches}"
        steps = trainer.estimated_stepping_batches - trainer.global_step
        left = steps * trainer.accumulate_grad_batches  # also with `max_steps`
        speed, rest = self._images / seconds, duration(left * seconds / self._steps)
        self._print(trainer, f"{text}: {speed:.0f} images/s, about {rest} of training left")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._is_due():
            batches = sum(int(n) for n in trainer.num_val_batches)
            self._print(trainer, f"epoch {trainer.current_epoch + 1}, validation: batch {batch_idx + 1}/{batches}")

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._is_due():
            batches = sum(int(n) for n in trainer.num_test_batches)
            self._print(trainer, f"scoring: batch {batch_idx + 1}/{batches}")

    def _is_due(self) -> bool:
        return time.monotonic() - self._printed >= INTERVAL

    def _print(self, trainer: L.Trainer, text: str) -> None:
        self._printed = time.monotonic()
        if trainer.is_global_zero:
            log.info(text)
            print(text, flush=True)


def epoch_of(trainer: L.Trainer) -> str:
    """ "epoch 3/40", or "epoch 3" where the number of epochs is not limited."""
    limited = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if limited else "")


def duration(seconds: float) -> str:
    """ "1 h 12 min", "3 min", or "20 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar with images per second beside the scores."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(leave=False)
        self.batch_size = batch_size
        self._images, self._since = 0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._images, self._since = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        self._images += self.batch_size
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if self._images:
            metrics["images/s"] = f"{self._images / (time.perf_counter() - self._since):.0f}"
        return metrics


def on_terminal() -> bool:
    """Whether the output is a terminal: a progress bar in a file is noise."""
    return sys.stdout.isatty()
