"""Preprocessing of faces for a backbone. It belongs to the model config and is stored with the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.data.table import SIDE

MEAN, STD = (0.5077,), (0.2551,)
"""Mean and standard deviation of FER-2013's training pixels, as fractions of the full range."""


MAX_SIZE = 1024
"""Largest height and width of a backbone's input."""


class Preprocessing(nn.Module):
    """Grey faces (B, 1, H, W), float in [0, 1], to the input of a backbone (B, channels, H, W).

    Args:
        channels: 1, or 3 for a backbone that expects colour: the grey channel is repeated.
        size: height and width that a whole face of 48 pixels is resized to (bilinear), and windows of it in proportion,
            so that faces are as large in training as in prediction; None leaves images as they are.
        mean: of each channel, as a fraction of the full range; one value serves all channels.
        std: of each channel, likewise.

    Raises:
        ValueError: a number of channels other than 1 or 3, or means and deviations that do not fit it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, channels: int = 1, size: int | None = None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"preprocessing.channels must be 1 or 3, not {channels}")
        if size is not None and not 1 <= size <= MAX_SIZE:
            raise ValueError(f"preprocessing.size must be null or a number of pixels up to {MAX_SIZE:,}, not {size}")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ValueError(f"preprocessing.{name} must hold 1 or {channels} numbers, not {list(values)}")
        if min(std) <= 0:
            raise ValueError(f"preprocessing.std must be positive, not {list(std)}")
        self.channels, self.size = channels, size
        # Not persistent: they come from the config, which is stored beside the weights.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def side_of(self, side: int) -> int:
        """Pixels that `side` pixels are resized to."""
        return side if self.size is None else max(1, round(self.size * side / SIDE))

    def forward(self, images: Tensor) -> Tensor:
        sides = tuple(map(self.side_of, images.shape[2:]))
        if images.shape[2:] != sides:
            images = F.interpolate(images, sides, mode="bilinear", align_corners=False)
        return ((images - self.mean) / self.std).expand(-1, self.channels, -1, -1)
