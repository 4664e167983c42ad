"""Losses: each takes the class counts of the training set and its own settings, and maps logits to a mean loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.distributed import ranks
from fer_lightning.models.heads import log_prior

Weights = Literal["inverse", "effective"]


def class_weights(class_counts: Sequence[int], kind: Weights, beta: float = 0.9999) -> Tensor:
    """A weight for each class, float (C,), with mean 1.

    Args:
        class_counts: training images per class.
        kind: `inverse`, one over the count; `effective`, one over the effective number (1 − βⁿ) / (1 − β) of Cui et al.
            2019, arXiv:1901.05555, equation 2.
        beta: β, from 0, which gives equal weights, up to 1, the limit of which is the inverse count.

    Raises:
        ValueError: an unknown kind, or a β out of its range.
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    if kind == "inverse":
        weights = 1 / counts
    elif kind == "effective":
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1, not {beta}")
        weights = (1 - beta) / (1 - beta**counts)
    else:
        raise ValueError(f"weights must be 'inverse', 'effective' or null, not '{kind}'")
    return (weights / weights.mean()).float()


class ClassLoss(nn.Module):
    """The mean over images of Σ_c target_c · weight_c · terms_c(logits); terms_c is the loss if c is the true class.

    Targets are labels, or probabilities, as those of mixed images and of annotators' votes: the loss is linear in its
    target, as in mixup (Zhang et al. 2018, arXiv:1710.09412, section 2).

    Args:
        class_counts: training images per class.
        weights: kind of class weights, see `class_weights`. As in PyTorch, the loss of a batch is divided by the summed
            weights of its targets, so that its scale stays the same; on several devices by those of the total batch, so
            that the gradient equals that of one device. Of batches whose gradients are accumulated, each is divided by
            its own.
        beta: of `weights=effective`.
        after: weights are in force after this fraction of the epochs, "deferred re-weighting" (Cao et al. 2019,
            arXiv:1906.07413, algorithm 1).
        label_smoothing: probability mass spread evenly over the classes (Szegedy et al. 2016, arXiv:1512.00567).

    Attributes:
        in_force: whether weights are applied; the training loop sets it according to `after`.

    Raises:
        ValueError: a setting out of its range.
    """

    weight: Tensor | None
    soft_targets = True
    """Whether targets may be probabilities."""

    def __init__(
        self,
        class_counts: Sequence[int],
        weights: Weights | None = None,
        beta: float = 0.9999,
        after: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if min(class_counts) < 1:
            raise ValueError(f"every class needs training images, not {list(class_counts)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, not {label_smoothing}")
        if not 0 <= after < 1:
            raise ValueError(f"after must be a fraction of the epochs, at least 0 and below 1, not {after}")
        self.label_smoothing, self.after, self.in_force = label_smoothing, after, not after
        weight = None if weights is None else class_weights(class_counts, weights, beta)
        # Not persistent: it follows from the counts, and a checkpoint should load without it.
        self.register_buffer("weight", weight, persistent=False)

    def terms(self, logits: Tensor) -> Tensor:
        """Logits (B, C), float32, to the loss of each class if it were the true one (B, C)."""
        raise NotImplementedError

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, C) and labels (B,) or probabilities (B, C) to the mean loss."""
        terms = self.terms(logits.float())
        if targets.ndim == 1:
            targets = F.one_hot(targets, terms.shape[1])
        targets = targets.to(terms)
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / terms.shape[1]
        if self.weight is None or not self.in_force:
            return (smooth * terms).sum() / len(terms)
        total = (targets * self.weight).sum()  # not a matrix product, which autocast would round
        if ranks.world() > 1:
            dist.all_reduce(total)
            total = total / ranks.world()  # DDP averages the gradients of the ranks
        return (smooth * terms * self.weight).sum() / total


class CrossEntropy(ClassLoss):
    """−log p_y. With `weights=effective`, the class-balanced loss of Cui et al. 2019, arXiv:1901.05555, equation 10."""

    def terms(self, logits: Tensor) -> Tensor:
        return -logits.log_softmax(1)


class Focal(ClassLoss):
    """−(1 − p_y)^γ log p_y: images that are already classified well count less (Lin et al. 2017, arXiv:1708.02002,
    equation 5; its α is `weights`).

    Args:
        gamma: γ, at least 0; 0 is cross-entropy.
        **settings: of `ClassLoss`.
    """

    def __init__(self, class_counts: Sequence[int], gamma: float = 2.0, **settings: Any) -> None:
        super().__init__(class_counts, **settings)
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, not {gamma}")
        self.gamma = gamma

    def terms(self, logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        # 1 − p from the logarithm, so that its gradient is finite where p rounds to 1.
        return -((1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).eps) ** self.gamma) * log_p


class LogitAdjusted(ClassLoss):
    """Cross-entropy of the logits plus τ times the log of the class's frequency; the logits themselves, and hence the
    predictions, do not include that term (Menon et al. 2021, arXiv:2007.07314, equation 10).

    Args:
        tau: τ; 1 is consistent with the balanced error.
        **settings: of `ClassLoss`.
    """

    log_prior: Tensor

    def __init__(self, class_counts: Sequence[int], tau: float = 1.0, **settings: Any) -> None:
        super().__init__(class_counts, **settings)
        self.tau = tau
        self.register_buffer("log_prior", log_prior(class_counts), persistent=False)

    def terms(self, logits: Tensor) -> Tensor:
        return -(logits + self.tau * self.log_prior).log_softmax(1)


class BalancedSoftmax(LogitAdjusted):
    """−log (n_y e^z_y / Σ_c n_c e^z_c) (Ren et al. 2020, arXiv:2007.10740, equation 4), which equals
    `LogitAdjusted` at τ = 1."""

    def __init__(self, class_counts: Sequence[int], **settings: Any) -> None:
        super().__init__(class_counts, tau=1.0, **settings)


class LDAM(ClassLoss):
    """Cross-entropy with a margin of the true class that is larger for rarer classes: s·Δ_y is subtracted from its
    logit, Δ_c = `max_margin` · (n_min / n_c)^¼ (Cao et al. 2019, arXiv:1906.07413, equations 11 and 13).

    Margins are margins of cosines: the network needs a cosine head of the same scale. They belong to one true class, so
    that the loss is not defined for smoothed and mixed targets.

    Args:
        max_margin: Δ of the rarest class.
        scale: s, by which the head multiplies its cosines.
        **settings: of `ClassLoss`; with `weights=effective` and `after`, LDAM-DRW.

    Raises:
        ValueError: also with label smoothing.
    """

    margins: Tensor
    soft_targets = False

    def __init__(
        self, class_counts: Sequence[int], max_margin: float = 0.5, scale: float = 30.0, **settings: Any
    ) -> None:
        if settings.get("label_smoothing"):
            raise ValueError("label_smoothing: LDAM's margin belongs to one true class; set it to 0")
        super().__init__(class_counts, **settings)
        self.scale = scale
        counts = torch.tensor(class_counts, dtype=torch.float64)
        self.register_buffer(
            "margins", (scale * max_margin * (counts.min() / counts) ** 0.25).float(), persistent=False
        )

    def terms(self, logits: Tensor) -> Tensor:
        lowered = logits[:, None, :] - torch.diag(self.margins)  # (B, C, C): row c as if c were the true class
        return lowered.logsumexp(2) - (logits - self.margins)
