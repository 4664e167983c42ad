"""Classifiers on top of a backbone's features, and what is done to their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


def log_prior(class_counts: Sequence[int]) -> Tensor:
    """The log of each class's share of the training images, float (C,)."""
    counts = torch.tensor(class_counts, dtype=torch.float64)
    return (counts / counts.sum()).log().float()


def adjusted(logits: Tensor, log_prior: Tensor, tau: float) -> Tensor:
    """Logits (B, C) minus τ times the log of the class shares (C,) (Menon et al. 2021, arXiv:2007.07314, eq. 9)."""
    return logits - tau * log_prior if tau else logits
