"""Small networks to explain."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fer_lightning.models.network import FaceNetwork


class TwoLayers(nn.Module):
    """Two convolutions with maps of 24 × 24 and 6 × 6."""

    num_features = 5
    saliency_layers: ClassVar[dict[str, str]] = {"First": "first", "Second": "later.0"}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.later = nn.Sequential(nn.Conv2d(4, 5, 5, stride=4, padding=1), nn.ReLU(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        return self.later(torch.tanh(self.norm(self.first(images)))).mean((2, 3))  # type: ignore[no-any-return]


class LowerLeft(nn.Module):
    """Sees nothing but the lower left corner, 12 × 12 pixels."""

    num_features = 1
    saliency_layers: ClassVar[dict[str, str]] = {"Only": "only"}

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(1, 1, 4, stride=4, bias=False)
        nn.init.ones_(self.only.weight)
        self.register_buffer("seen", torch.zeros(48, 48))
        self.seen[36:, :12] = 1

    def forward(self, images: Tensor) -> Tensor:
        return self.only(images.abs() * self.seen).mean((2, 3))  # type: ignore[no-any-return]


class NoLayers(LowerLeft):
    saliency_layers: ClassVar[dict[str, str]] = {}


def network(backbone: nn.Module, classes: int = 3, seed: int = 0) -> FaceNetwork:
    torch.manual_seed(seed)
    result = FaceNetwork(backbone, classes).eval()
    nn.init.ones_(result.head.weight[0])
    return result
