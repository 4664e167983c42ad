"""The progress bar, and whether to show one."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import RichProgressBar


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
    """Whether someone watches: a progress bar in a file is noise."""
    return sys.stdout.isatty()
