"""Augmentation: batched on the training device, or an albumentations pipeline.

Every random number is drawn on the CPU, from a generator that the loader seeds by (seed, epoch, batch): the images are
the same on every kind and number of devices, and in a resumed run the same as in an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lightning.data.table import SIDE
from fer_lightning.data.transfer import to_device


class Draws:
    """Random numbers, one for each image of a batch of which a rank may have a part.

    They are drawn for the whole batch, and the rank takes its part, so that an image gets the same ones on any rank.

    Args:
        seed: of the batch.
        total: images in the batch, over all ranks.
        mine: the part of this rank.
        progress: share of the training's epochs that lie behind this batch.
    """

    def __init__(self, seed: int, total: int, mine: slice = slice(None), progress: float = 1.0) -> None:
        self._rng, self._total, self._mine = torch.Generator().manual_seed(seed), total, mine
        self.progress = progress

    def uniform(self) -> Tensor:
        """Numbers in [0, 1), float (B,)."""
        return torch.rand(self._total, generator=self._rng)[self._mine]

    def symmetric(self) -> Tensor:
        """Numbers in [-1, 1), float (B,)."""
        return 2 * self.uniform() - 1

    def beta(self, alpha: float) -> Tensor:
        """Numbers from Beta(alpha, alpha), float (B,)."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=self._rng)))  # torch's takes no generator
        return torch.from_numpy(rng.beta(alpha, alpha, self._total)).float()[self._mine]

    def seeds(self) -> list[int]:
        """Seeds for other generators."""
        return torch.randint(2**31, (self._total,), generator=self._rng)[self._mine].tolist()


def sample(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    """`grid_sample` with repeated borders, also on Apple GPUs, which have neither these nor bicubic interpolation in
    every supported version of PyTorch.

    Args:
        images: float (B, C, H, W).
        grid: float (B, h, w, 2), x and y from -1 to 1.
        mode: "bilinear" or "bicubic".

    Returns:
        float (B, C, h, w).
    """
    if images.device.type != "mps":
        return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
    if mode == "bicubic":
        return sample(images.cpu(), grid.cpu(), mode).to(images.device)
    return sample_inside(images, grid)


def sample_inside(images: Tensor, grid: Tensor) -> Tensor:
    """Bilinear sampling with repeated borders, by moving points to the centres of the outermost pixels."""
    last = 1 - 1 / torch.tensor([images.shape[3], images.shape[2]], dtype=grid.dtype, device=grid.device)
    return F.grid_sample(images, torch.maximum(torch.minimum(grid, last), -last), align_corners=False)


class BatchAugment:
    """Flip, rotate, scale, shift, crop, brighten and erase a whole batch at once.

    Args:
        flip: probability of a horizontal flip.
        rotate: largest rotation in degrees, in both directions.
        scale: largest relative change of size: 0.1 draws factors from 0.9 to 1.1.
        shift: largest translation along each axis, as a fraction of the side.
        crop: side in pixels of the window that is left of the middle of the flipped, rotated, scaled and shifted image,
            so that `shift` moves the window; None for all of the image. A network that ends in global pooling trains
            faster on a window, in proportion to its area, and predicts from whole images.
        first_side: side in pixels to which the image, or the window, is reduced in the first epoch. It grows in steps
            of 4 pixels, so that early epochs are faster (Tan & Le 2021, arXiv:2104.00298). None for no reduction.
        full_from: share of the epochs after which nothing is reduced.
        brightness: largest change of brightness, as a fraction of the full range.
        contrast: largest relative change of contrast around the mean of the image.
        erase: probability of erasing one rectangle (Zhong et al. 2020, arXiv:1708.04896) of `erase_area`.
        erase_area: smallest and largest area of the rectangle, as fractions of the image.
        interpolation: "bicubic" or "bilinear", of rotated, scaled and shifted images; the second averages neighbouring
            pixels, so that fine detail is lost.
        batch_norm_images: number of training images, in windows but otherwise as they are, from which the statistics of
            batch norm are estimated before each validation; 0 for those of the augmented images in training.

    Pixels from outside the image repeat its border.
    """

    def __init__(
        self,
        flip: float = 0.5,
        rotate: float = 0.0,
        scale: float = 0.0,
        shift: float = 0.0,
        crop: int | None = None,
        first_side: int | None = None,
        full_from: float = 0.7,
        brightness: float = 0.0,
        contrast: float = 0.0,
        erase: float = 0.0,
        erase_area: Sequence[float] = (0.02, 0.2),
        interpolation: str = "bilinear",
        batch_norm_images: int = 0,
    ) -> None:
        for name, p in (("flip", flip), ("erase", erase)):
            if not 0 <= p <= 1:
                raise ValueError(f"{name} is a probability, from 0 to 1, not {p}")
        for name, amount in (("scale", scale), ("shift", shift), ("brightness", brightness), ("contrast", contrast)):
            if not 0 <= amount < 1:
                raise ValueError(f"{name} is a fraction, at least 0 and below 1, not {amount}")
        if not (len(erase_area) == 2 and 0 < erase_area[0] <= erase_area[1] < 1):
            raise ValueError(f"erase_area is a smallest and a largest fraction, not {list(erase_area)}")
        if crop is not None and not 1 <= crop <= SIDE:
            raise ValueError(f"crop is a number of pixels, from 1 to {SIDE}, not {crop}")
        if first_side is not None and not 1 <= first_side <= (crop or SIDE):
            raise ValueError(f"first_side is a number of pixels, from 1 to {crop or SIDE}, not {first_side}")
        if not 0 < full_from <= 1:
            raise ValueError(f"full_from is a share of the epochs, above 0 and at most 1, not {full_from}")
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation is bilinear or bicubic, not {interpolation}")
        if not math.isfinite(rotate):
            raise ValueError(f"rotate is a number of degrees, not {rotate}")
        self.flip, self.rotate, self.scale, self.shift = (flip, math.radians(rotate), scale, shift)
        self.crop, self.first_side, self.full_from = crop, first_side, full_from
        self.brightness, self.contrast = brightness, contrast
        self.erase, self.erase_area = erase, tuple(erase_area)
        self.interpolation, self.batch_norm_images = interpolation, _images(batch_norm_images)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Augment images (B, 1, H, W), float in [0, 1], to images of the same range and, without `crop` and
        `first_side`, shape."""
        images = self._warp(images, draws)
        images = self._light(images, draws)
        return self._erase(images, draws)

    def _warp(self, images: Tensor, draws: Draws) -> Tensor:
        mirror = 1 - 2 * (draws.uniform() < self.flip).float()
        angle = self.rotate * draws.symmetric()
        zoom = 1 / (1 + self.scale * draws.symmetric())
        shift_x, shift_y = (2 * self.shift * draws.symmetric(), 2 * self.shift * draws.symmetric())
        height, width = images.shape[2:]
        window_height, window_width = (height, width) if self.crop is None else (self.crop, self.crop)
        side = self.side(min(window_height, window_width), draws.progress)
        if self.rotate == self.scale == self.shift == 0 and side == min(window_height, window_width):
            top, left = (height - window_height) // 2, (width - window_width) // 2
            images = images[:, :, top : top + window_height, left : left + window_width]
            return torch.where(to_device(mirror < 0, images.device).view(-1, 1, 1, 1), images.flip(3), images)
        cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
        theta = torch.stack(
            [torch.stack([cos * mirror, -sin, shift_x], 1), torch.stack([sin * mirror, cos, shift_y], 1)], 1
        )
        theta[:, :, 0] *= window_width / width  # the grid spans the window
        theta[:, :, 1] *= window_height / height
        theta = to_device(theta, images.device)
        reduced = side / min(window_height, window_width)
        size = [len(images), 1, round(window_height * reduced), round(window_width * reduced)]
        grid = F.affine_grid(theta, size, align_corners=False)
        mode = self.interpolation
        warped = sample(images, grid, mode)
        return warped.clamp_(0, 1) if mode == "bicubic" else warped  # which overshoots at edges

    def window(self, images: Tensor, draws: Draws) -> Tensor:
        """Windows of images (B, 1, H, W) at the places where training cuts them, but moved by whole pixels and without
        any other change; the images themselves without `crop`."""
        if self.crop is None:
            return images
        corners = []
        for n in images.shape[2:]:
            moved = (n - self.crop) / 2 + n * self.shift * draws.symmetric()
            corners.append(to_device(moved.round().long().clamp(0, n - self.crop), images.device))
        every_window = images[:, 0].unfold(1, self.crop, 1).unfold(2, self.crop, 1)
        return every_window[torch.arange(len(images), device=images.device), corners[0], corners[1]][:, None]

    def side(self, full: int, progress: float) -> int:
        """Side in pixels, after a share of the epochs, of what is `full` pixels wide in the end."""
        if self.first_side is None or progress >= self.full_from:
            return full
        grown = self.first_side + (full - self.first_side) * progress / self.full_from
        return min(full, self.first_side + int(grown - self.first_side) // 4 * 4)

    def sides(self) -> list[int]:
        """Every side in pixels that images of SIDE pixels have in some epoch."""
        full = self.crop or SIDE
        return [*(range(self.first_side, full, 4) if self.first_side else ()), full]

    def _light(self, images: Tensor, draws: Draws) -> Tensor:
        offset, gain = self.brightness * draws.symmetric(), 1 + self.contrast * draws.symmetric()
        if self.brightness == self.contrast == 0:
            return images
        offset, gain = to_device(torch.stack([offset, gain]), images.device).view(2, -1, 1, 1, 1).unbind()
        mean = images.mean((1, 2, 3), keepdim=True)
        return ((images - mean) * gain + mean + offset).clamp_(0, 1)

    def _erase(self, images: Tensor, draws: Draws) -> Tensor:
        low, high = self.erase_area
        area = low + (high - low) * draws.uniform()
        aspect = torch.exp(math.log(3) * draws.symmetric())  # from 1:3 to 3:1
        centre_y, centre_x = draws.uniform(), draws.uniform()
        erased = draws.uniform() < self.erase
        grey = draws.uniform()
        if self.erase == 0:
            return images
        half_h, half_w = (area * aspect).sqrt() / 2 * erased, (area / aspect).sqrt() / 2
        drawn = to_device(torch.stack([centre_y, centre_x, half_h, half_w, grey]), images.device)
        mask = rectangles(drawn[0], drawn[1], drawn[2], drawn[3], images.shape[2:])
        return torch.where(mask[:, None], drawn[4].view(-1, 1, 1, 1), images)


def _images(number: int) -> int:
    if number < 0:
        raise ValueError(f"batch_norm_images is a number of images, 0 or more, not {number}")
    return number


def rectangles(y: Tensor, x: Tensor, half_height: Tensor, half_width: Tensor, size: torch.Size) -> Tensor:
    """The pixels inside a rectangle of each image, bool (B, H, W).

    Args:
        y, x: the centres, (B,), as fractions of the sides.
        half_height, half_width: (B,), as fractions of the sides.
        size: height and width of the images in pixels.
    """
    rows, columns = ((torch.arange(n, device=y.device) + 0.5) / n for n in size)
    inside_y = (rows[None] - y[:, None]).abs() < half_height[:, None]
    inside_x = (columns[None] - x[:, None]).abs() < half_width[:, None]
    return inside_y[:, :, None] & inside_x[:, None, :]


class AlbumentationsAugment:
    """An albumentations pipeline, in its serialised form, applied image by image on the CPU.

    Args:
        transforms: the pipeline's steps, each a mapping with `name` (a class of albumentations) and its arguments.
        batch_norm_images: as of `BatchAugment`; the images are whole.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]], batch_norm_images: int = 0) -> None:
        from fer_lightning.data.transforms.pipeline import Pipeline

        self.pipeline = Pipeline(transforms, key="augment.transforms")
        self.batch_norm_images = _images(batch_norm_images)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Augment images (B, 1, H, W), float in [0, 1]; the pipeline itself sees uint8 (H, W, 1)."""
        batch_BHWC = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        out = [self.pipeline(image, seed) for image, seed in zip(batch_BHWC, draws.seeds(), strict=True)]
        return torch.stack([torch.from_numpy(o) for o in out]).permute(0, 3, 1, 2).to(images) / 255
