"""Losses: each takes the class counts of what is trained on, then its own settings, and maps logits to a mean loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning import ranks


class CrossEntropy(nn.Module):
    """Cross-entropy over logits (B, C) and labels (B,), optionally weighing rare classes more.

    Args:
        class_counts: training images per class.
        weighted: weigh each class by its inverse frequency, scaled so that the weights' mean over classes is 1. As in
            PyTorch, the loss of a batch is divided by the weights of its labels, so its scale does not move; on several
            devices by those of the whole batch, so that they learn from it what one would.
        label_smoothing: probability mass spread evenly over the classes (Szegedy et al. 2016, arXiv:1512.00567).
    """

    weight: Tensor | None

    def __init__(self, class_counts: Sequence[int], weighted: bool = False, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is a probability mass, from 0 up to 1, not {label_smoothing}")
        self.label_smoothing = label_smoothing
        weight = None
        if weighted:
            inverse = 1 / torch.tensor(class_counts, dtype=torch.float64)
            weight = (inverse / inverse.mean()).float()
        # Not persistent: it follows from the counts, and a checkpoint should load without it.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        settings = {"weight": self.weight, "label_smoothing": self.label_smoothing}
        if self.weight is None or ranks.world() == 1:
            return F.cross_entropy(logits.float(), labels, **settings)  # type: ignore[arg-type]
        total = self.weight[labels].sum()
        dist.all_reduce(total)
        # DDP averages the gradients of the ranks.
        return F.cross_entropy(logits.float(), labels, **settings, reduction="sum") / (total / ranks.world())  # type: ignore[arg-type]
