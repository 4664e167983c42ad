"""Progress: a bar on a terminal, a line at least every minute elsewhere."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import RichProgressBar

from fer_lightning.training.callbacks.history import History, epoch_of

log = logging.getLogger(__name__)

INTERVAL = 30.0
"""Seconds after which the next batch prints a line: where a batch takes less, lines are at most a minute apart."""


class ProgressLine(L.Callback):
    """Prints epoch, step of steps, images per second and the time left, for a log or a slow machine."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._printed = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._printed = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._is_due():
            return
        steps = trainer.estimated_stepping_batches - trainer.global_step
        batches = steps * trainer.accumulate_grad_batches  # also with `max_steps`
        left = duration(batches * self.history.epoch_seconds / (batch_idx + 1))
        text = f"{epoch_of(trainer)}, step {batch_idx + 1}/{trainer.num_training_batches}"
        self._print(trainer, f"{text}: {self.history.epoch_speed:.0f} images/s, about {left} of training left")

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


def duration(seconds: float) -> str:
    """ "1 h 12 min", "3 min", or "20 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar with images per second beside the scores."""

    def __init__(self, history: History) -> None:
        super().__init__(leave=False)
        self.history = history

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        metrics["images/s"] = f"{self.history.epoch_speed:.0f}"
        return metrics
