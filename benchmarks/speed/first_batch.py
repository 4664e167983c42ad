"""A callback that ends a job at its first training batch, for peers.py."""

from __future__ import annotations

import os
from typing import Any

import lightning.pytorch as L


class EndAtFirstBatch(L.Callback):
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        os._exit(0)
