"""Batches from images that are stored on the device or, where they are too many, read for each batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fer_lightning.data.seeding import stream_rng, stream_seed
from fer_lightning.data.selection import Selection
from fer_lightning.data.transfer import to_device
from fer_lightning.data.transforms.augment import Draws
from fer_lightning.data.transforms.mixing import Mix


class Batch(NamedTuple):
    """images float (B, 1, H, W) in [0, 1]; labels int64 (B,); rows int64 (B,), the row of each in the
    table; targets float (B, C), probabilities to learn instead of the label, if there are any."""

    images: Tensor
    labels: Tensor
    rows: Tensor
    targets: Tensor | None = None


Augment = Callable[[Tensor, Draws], Tensor]


def draw_labels(targets: NDArray[np.float32], rows: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """A class for each image, drawn from its distribution; it depends on (seed, epoch, row) only.

    Args:
        targets: float (N, C), rows with the sum 1.
        rows: int64 (N,).
        seed, epoch: of the draw.

    Returns:
        int64 (N,).
    """
    uniform = stream_rng("labels", seed, epoch).random(int(rows.max()) + 1)[rows]
    edges = targets.cumsum(1, dtype=np.float64)
    drawn: NDArray[np.int64] = (uniform[:, None] * edges[:, -1:] < edges).argmax(1)
    return drawn


class TrainingOrder:
    """The images that one rank trains on in one epoch, in their order.

    Every rank draws the same permutation from (seed, epoch), divides it into the same batches and takes its part of
    each. A batch thus has the same images on any number of devices. What remains at the end of an epoch, less than a
    batch, is dropped; another epoch drops other images.

    Lightning calls `set_epoch` on the `sampler` attribute of a loader.

    Args:
        n: images in the training set.
        batch_size: images per batch over all ranks; reduced if there are fewer images.
        seed, rank, world: of the permutation; this rank and the number of ranks.
        probabilities: float (n,), of drawing each image, with replacement, instead of a permutation.
        drawn_from: the first epoch, from 0, in which they apply.
        epochs: of the training, for augmentation that changes with them; 0 if their number is unknown.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        probabilities: NDArray[np.float64] | None = None,
        drawn_from: int = 0,
        epochs: int = 0,
    ) -> None:
        self.n, self.seed, self.epoch, self.epochs = n, seed, 0, epochs
        self.batch_size = min(batch_size, n - n % world)
        assert self.batch_size > 0
        assert self.batch_size % world == 0
        part = self.batch_size // world
        self.shard = slice(rank * part, (rank + 1) * part)
        self.probabilities, self.drawn_from = probabilities, drawn_from
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.batch_size

    def batch(self, number: int) -> NDArray[np.int64]:
        """Indices into the training set of this rank's part of a batch, int64 (batch_size / world,)."""
        if self._shuffled is None or self._shuffled[0] != self.epoch:
            rng = stream_rng("order", self.seed, self.epoch)
            drawn = self.probabilities is not None and self.epoch >= self.drawn_from
            order = rng.choice(self.n, self.n, p=self.probabilities) if drawn else rng.permutation(self.n)
            self._shuffled = self.epoch, order
        return self._shuffled[1][number * self.batch_size : (number + 1) * self.batch_size][self.shard]

    def draws(self, number: int) -> Draws:
        """The random numbers of a batch."""
        seed = stream_seed("augmentation", self.seed, self.epoch, number)
        progress = min(1.0, self.epoch / self.epochs) if self.epochs > 0 else 0.0
        return Draws(seed, self.batch_size, self.shard, progress)


class EvaluationOrder:
    """The images that one rank scores. Ranks take complete batches in turn, so that a batch, and with it all rounding,
    is the same on any number of devices.

    Every rank gets the same number of batches, since ranks wait for each other; the last may be empty.
    """

    def __init__(self, n: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        self.n, self.batch_size, self.rank, self.world = n, batch_size, rank, world

    def __len__(self) -> int:
        return math.ceil(self.n / (self.batch_size * self.world))

    def batch(self, number: int) -> NDArray[np.int64]:
        """Indices of a batch of this rank, int64, at most `batch_size`; no image goes to two ranks."""
        start = (number * self.world + self.rank) * self.batch_size
        return np.arange(start, max(start, min(start + self.batch_size, self.n)))


RESIDENT_GIB = 2.0
"""GiB of images, 930,000 of them, that a loader keeps on the device by default."""


class FaceLoader:
    """Iterates batches gathered from one uint8 tensor on the training device, without workers.

    Args:
        images: N of (H, W).
        labels, rows: int64 (N,).
        order: the images and their order; augmentation needs a TrainingOrder.
        device: the device that the images are copied to, once.
        resident_gib: limit in GiB on images to copy there; beyond it, each batch is read from `images`.
        augment: applied to each batch.
        mix: applied to each batch after that.
        class_counts: training images per class, int64 (C,); for `mix`.
        skip: images of the first epoch to skip, since a resumed run has seen them.
        targets: float (N, C), distributions to learn instead of the labels.
        draw_labels: learn a label that is drawn from them in each epoch of a TrainingOrder, see `draw_labels`.

    Attributes:
        served: images of the epoch that have been served by all ranks.
    """

    batch_sampler = None  # Lightning reads it of every loader with a `sampler`

    def __init__(
        self,
        images: Selection,
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        order: TrainingOrder | EvaluationOrder,
        device: torch.device,
        augment: Augment | None = None,
        mix: Mix | None = None,
        class_counts: NDArray[np.int64] | None = None,
        skip: int = 0,
        targets: NDArray[np.float32] | None = None,
        draw_labels: bool = False,
        resident_gib: float = RESIDENT_GIB,
    ) -> None:
        assert len(images) == len(labels) == len(rows) == order.n
        self.device, self._selection = device, images
        resident = images.nbytes <= resident_gib * 2**30
        self._resident = torch.from_numpy(images[:]).to(device) if resident else None
        self.labels = torch.from_numpy(np.array(labels)).to(device)
        self.rows = torch.from_numpy(np.array(rows)).to(device)
        self.sampler, self.augment, self.mix = order, augment, mix
        self.class_counts = None if class_counts is None else torch.from_numpy(class_counts).to(device)
        drawn = draw_labels and targets is not None
        self.targets = None if targets is None or drawn else torch.from_numpy(np.array(targets)).to(device)
        self._draws_from = targets if drawn else None
        self.served, self._skip = 0, skip

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        order = self.sampler
        skip, self._skip = self._skip, 0
        if self._draws_from is not None:
            assert isinstance(order, TrainingOrder)
            labels = draw_labels(self._draws_from, self.rows.cpu().numpy(), seed=order.seed, epoch=order.epoch)
            self.labels = torch.from_numpy(labels).to(self.device)
        for number in range(skip // order.batch_size, len(order)):
            chosen = order.batch(number)
            index = to_device(torch.from_numpy(chosen), self.device)
            images = self._gathered(chosen, index)[:, None].float().div_(255)
            targets = None if self.targets is None else self.targets[index]
            if self.augment is not None or self.mix is not None:
                assert isinstance(order, TrainingOrder)
                draws = order.draws(number)
                if self.augment is not None:
                    images = self.augment(images, draws)
                if self.mix is not None:
                    assert self.class_counts is not None
                    if targets is None:
                        targets = F.one_hot(self.labels[index], len(self.class_counts)).float()
                    images, targets = self.mix(images, targets, draws, self.class_counts)
            self.served = (number + 1) * order.batch_size
            yield Batch(images, self.labels[index], self.rows[index], targets)

    def _gathered(self, chosen: NDArray[np.int64], index: Tensor) -> Tensor:
        """The images of a batch on the device, uint8 (B, H, W)."""
        if self._resident is not None:
            return self._resident[index]
        images = torch.from_numpy(self._selection[chosen])
        if self.device.type == "cuda":  # from pinned memory the copy does not wait for the device
            images = images.pin_memory()
        return to_device(images, self.device)

    def state_dict(self) -> dict[str, int]:
        """Empty; its existence makes Lightning resume within an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to restore: the data module stores the position, since Lightning restores loaders too late."""
