"""Mixup, CutMix and Remix: training on mixtures of two faces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fer_lightning.data.transfer import to_device
from fer_lightning.data.transforms.augment import Draws, rectangles


@dataclass(frozen=True)
class Mix:
    """Mixes each image of a batch with its neighbour: 1st and 2nd with each other, 3rd and 4th, and so on.

    Batches are in random order, and so are neighbours; a rank has complete pairs and needs no image of another rank.

    Args:
        alpha: λ, the weight of the image itself, is drawn from Beta(alpha, alpha) for each image (mixup, Zhang et al.
            2018, arXiv:1710.09412).
        cut: replace a rectangle of the area 1 − λ instead of blending (CutMix, Yun et al. 2019, arXiv:1905.04899).
        p: probability that an image is mixed at all.
        kappa: Remix (Chou et al. 2020, arXiv:2007.03943): if one of the two classes has at least `kappa` times the
            images of the other, the mixture gets the label of the rarer one, unless its weight is below 1 − `tau`,
            equation 7. None mixes labels like images.
        tau: τ of Remix, the largest weight of the frequent class at which the label of the rare one is used.
        until: share of the epochs after which nothing is mixed.

    Raises:
        ValueError: an argument is out of range.
    """

    alpha: float = 1.0
    cut: bool = False
    p: float = 1.0
    kappa: float | None = None
    tau: float = 0.5
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}")
        for name, value in (("p", self.p), ("tau", self.tau), ("until", self.until)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {value}")
        if self.kappa is not None and self.kappa < 1:
            raise ValueError(f"kappa must be 1 or more, a ratio of class sizes, not {self.kappa}")

    def __call__(self, images: Tensor, targets: Tensor, draws: Draws, class_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: float (B, 1, H, W).
            targets: float (B, C), probabilities.
            draws: random numbers of the batch.
            class_counts: training images per class, (C,).

        Returns:
            Mixed images and targets of the same shapes; the last of an odd number is unchanged.
        """
        if draws.progress >= self.until < 1:
            return images, targets
        share = torch.where(draws.uniform() < self.p, draws.beta(self.alpha), torch.tensor(1.0))
        centre_y, centre_x = draws.uniform(), draws.uniform()
        n = len(images)
        partner = (torch.arange(n, device=images.device) ^ 1).clamp_max(n - 1)
        if self.cut:
            half = (1 - share).sqrt() / 2
            centre_y, centre_x, half = to_device(torch.stack([centre_y, centre_x, half]), images.device).unbind()
            inside = rectangles(centre_y, centre_x, half, half, images.shape[2:])
            share = 1 - inside.float().mean((1, 2))
            images = torch.where(inside[:, None], images[partner], images)
        else:
            share = to_device(share, images.device)
            own = share.view(-1, 1, 1, 1)
            images = own * images + (1 - own) * images[partner]
        if self.kappa is not None:
            share = self._weight_for_remix(share, targets @ class_counts.to(targets), partner)
        own = share[:, None]
        return images, own * targets + (1 - own) * targets[partner]

    def _weight_for_remix(self, share: Tensor, sizes: Tensor, partner: Tensor) -> Tensor:
        """The weight of the image's own label, given the size of each image's class: 0, 1 or that of the image."""
        assert self.kappa is not None
        ratio = sizes / sizes[partner]
        share = torch.where((ratio >= self.kappa) & (share < self.tau), 0.0, share)
        return torch.where((ratio <= 1 / self.kappa) & (1 - share < self.tau), 1.0, share)
