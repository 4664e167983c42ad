"""A moving average of the weights."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
        super().__init__(multi_avg_fn=self.average)

    def average(self, averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        """Update the average in place by the current values after a number of updates."""
        t = int(updates)
        update = get_ema_multi_avg_fn(min(self.decay, (1 + t) / (10 + t)))  # type: ignore[no-untyped-call]
        update(averaged, current, updates)
