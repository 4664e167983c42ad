"""Batches from images that live on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Batch(NamedTuple):
    """images float (B, 1, H, W) in [0, 1]; labels int64 (B,); rows int64 (B,), where each came from in its source."""

    images: Tensor
    labels: Tensor
    rows: Tensor


class Augment(Protocol):
    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor: ...


class ShardedSampler:
    """Which images one rank sees in one epoch, and in which order.

    Shuffled, every rank draws the same permutation of (seed, epoch) and takes every `world`-th of it; all ranks get
    equally many, so that they step together. In order, rank r takes r, r + world, …: each image exactly once overall,
    no padding.

    Lightning calls `set_epoch` on whatever a loader carries as `sampler`.
    """

    def __init__(self, n: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.n, self.shuffle, self.seed, self.rank, self.world = (n, shuffle, seed, rank, world)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.world if self.shuffle else len(range(self.rank, self.n, self.world))

    def indices(self) -> NDArray[np.int64]:
        """Positions in the data set, int64 (len(self),)."""
        if not self.shuffle:
            return np.arange(self.rank, self.n, self.world)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        return order[self.rank :: self.world][: len(self)]


class FaceLoader:
    """Iterates batches gathered from one uint8 tensor on the training device; there are no workers to feed it.

    Args:
        images: uint8 (N, H, W).
        labels, rows: int64 (N,).
        sampler: order and shard.
        batch_size: images a batch on this rank.
        device: where the images are put, once.
        augment: applied to each batch, with random numbers of (seed, epoch, batch, rank).
        drop_last: leave out a last batch that is not full, unless it is the only one.
    """

    batch_sampler = None  # Lightning asks for one wherever it finds a `sampler`

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        sampler: ShardedSampler,
        batch_size: int,
        device: torch.device,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> None:
        assert len(images) == len(labels) == len(rows) == sampler.n
        # A copy: the source may be a read-only memory map.
        self.images = torch.from_numpy(np.array(images))[:, None].to(device)
        self.labels = torch.from_numpy(np.array(labels)).to(device)
        self.rows = torch.from_numpy(np.array(rows)).to(device)
        self.sampler, self.batch_size, self.augment, self.drop_last = (sampler, batch_size, augment, drop_last)

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full if rest == 0 or (self.drop_last and full) else full + 1

    def __iter__(self) -> Iterator[Batch]:
        order = torch.from_numpy(self.sampler.indices()).to(self.images.device)
        for number in range(len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            images = self.images[index].float().div_(255)
            if self.augment is not None:
                entropy = [self.sampler.seed, self.sampler.epoch, number, self.sampler.rank]
                seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
                images = self.augment(images, torch.Generator().manual_seed(seed % 2**63))
            yield Batch(images, self.labels[index], self.rows[index])
