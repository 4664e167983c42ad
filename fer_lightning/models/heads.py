"""Classifiers on top of a backbone's features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CosineHead(nn.Linear):
    """Features (B, in_features) to `scale` × their cosine with the weight vector of each class (B, out_features).

    Losses with margins, such as LDAM, are defined on cosines.
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))
