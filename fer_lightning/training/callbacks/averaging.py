"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


class EMA(WeightAveraging):
    """Validates, saves and tests an exponential moving average of the weights (Polyak & Juditsky 1992,
    doi:10.1137/0330046).

    After t updates the decay is min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage: a short
    run would otherwise keep most of its initial weights.

    Args:
        decay: of the average, between 0 and 1.

    Raises:
        ValueError: the decay is out of its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must be between 0 and 1, not {decay}")
        self.decay = decay
        super().__init__()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Create the average, in the layout that the weights will have."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            average = self._average_model
            assert average is not None
            device, channels_last = trainer.strategy.root_device, pl_module.hparams["channels_last"]
            average.module.network.arrange(device, channels_last)  # type: ignore[union-attr,operator]
            average.n_averaged = average.n_averaged.cpu()  # so that reading it does not wait for the device

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after a step of the optimizer."""
        if trainer.global_step > self._latest_update_step:
            self._update(pl_module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _update(self, pl_module: L.LightningModule) -> None:
        """As `AveragedModel.update_parameters`, which copies the number of updates to the device and back."""
        average = self._average_model
        assert average is not None
        t = int(average.n_averaged)
        kept = min(self.decay, (1 + t) / (10 + t)) if t else 0.0  # the first update copies the weights
        pairs = list(zip(_tensors(average.module), _tensors(pl_module), strict=True))
        averaged, current = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averaged, current, 1 - kept)
        if counts := [pair for pair in pairs if not pair[0].is_floating_point()]:  # of the batches of a batch norm
            torch._foreach_copy_([ours for ours, _ in counts], [theirs for _, theirs in counts])
        average.n_averaged += 1


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
