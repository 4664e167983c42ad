"""The LightningDataModule: one table, partitioned and resampled, with its images on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import lightning.pytorch as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fer_lightning.data.loader import RESIDENT_GIB, Augment, EvaluationOrder, FaceLoader, TrainingOrder
from fer_lightning.data.protocols import Partition, Rows
from fer_lightning.data.seeding import stream_seed
from fer_lightning.data.selection import Selection
from fer_lightning.data.table import FaceTable
from fer_lightning.data.transforms.augment import Draws
from fer_lightning.data.transforms.mixing import Mix
from fer_lightning.data.transforms.resampling import ClassSampling, TrainingSet
from fer_lightning.errors import UserError


class FERDataModule(L.LightningDataModule):
    """Data loaders of a partitioned table.

    Args:
        faces: every image of the source.
        parts: the training, validation and test images.
        resample: changes the training set, see `fer_lightning.data.transforms.resampling`; validation and test images
            are never changed.
        sampler: how often images are drawn, see `fer_lightning.data.transforms.resampling`.
        sampled_from: the first epoch, counted from 0, in which `sampler` is in force.
        augment: applied to each training batch.
        mix: applied to each training batch after that.
        batch_size: images per training batch over all devices, of which each gets an equal part.
        eval_batch_size: images per validation and test batch on each device.
        seed: of the order of batches and of augmentation.
        epochs: of the training, for augmentation that changes with them; 0 or less if their number is unknown.
        resident_gib: limit in GiB on the images a loader copies to the device; beyond it, each batch is read from
            the table.
        draw_labels: if the table has targets, train on a label drawn from them in each epoch.
        limit_val: of the batches of validation, see `evaluation_loader`.
        cleaned: a description of how the training set was cleaned.
        digests: of the images and labels of each part before cleaning, see `fer_lightning.config.dataset.Loaded`.

    Raises:
        UserError: an invalid batch size, or fewer than two training images.
    """

    def __init__(
        self,
        faces: FaceTable,
        parts: Partition,
        *,
        resample: Callable[[TrainingSet, tuple[str, ...]], TrainingSet] | None = None,
        sampler: ClassSampling | None = None,
        sampled_from: int = 0,
        augment: Augment | None = None,
        mix: Mix | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        seed: int = 0,
        epochs: int = 0,
        resident_gib: float = RESIDENT_GIB,
        draw_labels: bool = False,
        limit_val: float | None = None,
        cleaned: str = "",
        digests: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 2:
            raise UserError(f"data.batch_size={batch_size}: batch norm needs at least 2 images; raise it")
        if eval_batch_size < 1:
            raise UserError(f"data.eval_batch_size={eval_batch_size}: must be at least 1")
        if not resident_gib >= 0:
            raise UserError(f"data.resident_gib={resident_gib}: must be 0 or more")
        self.faces, self.parts, self.draw_labels, self.cleaned = faces, parts, draw_labels, cleaned
        self.digests = digests or parts.digests(faces)
        self.sampler, self.sampled_from, self.augment, self.mix = sampler, sampled_from, augment, mix
        self.batch_size, self.eval_batch_size, self.seed, self.epochs = batch_size, eval_batch_size, seed, epochs
        self.resident_gib, self.limit_val = resident_gib, limit_val
        rows = parts.train
        targets = None if faces.targets is None else faces.targets[rows]
        copied = np.zeros(len(rows), dtype=bool)
        training = TrainingSet(Selection(faces.images, rows), faces.training_labels[rows], rows, copied, targets)
        self.training = training if resample is None else resample(training, faces.classes)
        if len(self.training) < 2:
            raise UserError(f"{faces.source}: {len(self.training)} training image; at least 2 are needed")

        self._loader: FaceLoader | None = None
        self._skip = 0

    def state_dict(self) -> dict[str, int]:
        """How many images of the epoch have been used for training; Lightning stores it in checkpoints."""
        within_epoch = self._loader is not None and self.trainer is not None and not self.trainer.is_last_batch
        return {"images": self._loader.served if within_epoch else 0}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._skip = state_dict["images"]

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Images per class of the training set after resampling, int64 (C,). With a sampler that is active from the
        start, the expected number in an epoch."""
        counts = self.training.counts(len(self.faces.classes))
        if self.sampler is None or self.sampled_from:
            return counts
        expected = self.sampler.probabilities(counts) * counts.sum()
        return np.where(counts > 0, np.maximum(expected.round(), 1), 0).astype(np.int64)

    def train_dataloader(self) -> FaceLoader:
        training = self.training
        rank, world = _rank(self.trainer)
        if len(training) < 2 * world:
            raise UserError(
                f"{self.faces.source}: {len(training)} training images are too few for {world} devices; use fewer"
            )
        probabilities = None
        if self.sampler is not None:
            counts = training.counts(len(self.faces.classes))
            of_class = self.sampler.probabilities(counts) / np.maximum(counts, 1)
            probabilities = of_class[training.labels] / of_class[training.labels].sum()
        order = TrainingOrder(
            len(training),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            probabilities=probabilities,
            drawn_from=self.sampled_from,
            epochs=self.epochs,
        )
        skip, self._skip = self._skip, 0
        self._loader = FaceLoader(
            training.images,
            training.labels,
            training.rows,
            order,
            _device(self.trainer),
            self.augment,
            self.mix,
            self.class_counts,
            skip,
            training.targets,
            self.draw_labels,
            self.resident_gib,
        )
        return self._loader

    def val_dataloader(self) -> FaceLoader:
        return self.evaluation_loader(self.parts.val, self.limit_val)

    def test_dataloader(self) -> FaceLoader:
        return self.evaluation_loader(self.parts.test)

    def unaugmented(self) -> Iterator[Tensor]:
        """Batches (B, 1, H, W), float in [0, 1], of `augment.batch_norm_images` training images as they are, in windows
        if training sees windows. They are the same each time and on each rank, and none is a copy that balances the
        classes; there are none without augmentation."""
        wanted = min(getattr(self.augment, "batch_norm_images", 0), len(self.parts.train))
        size = min(self.batch_size, wanted)
        if size < 2:
            return
        n = wanted // size * size  # batches of one size, since each counts as much
        seed = stream_seed("statistics", self.seed)
        rows = np.random.default_rng(seed).choice(self.parts.train, n, replace=False)
        images, labels = Selection(self.faces.images, rows), self.faces.labels[rows]
        loader = FaceLoader(
            images, labels, rows, EvaluationOrder(n, size), _device(self.trainer), resident_gib=self.resident_gib
        )
        window = getattr(self.augment, "window", None)
        for number, batch in enumerate(loader):
            draws = Draws(stream_seed("statistics", self.seed, number), size)
            yield batch.images if window is None else window(batch.images, draws)

    def evaluation_loader(self, rows: Rows, limit: float | None = None) -> FaceLoader:
        """The images of `rows` that the rank of the trainer scores, in order, on its device.

        Args:
            rows: of the table.
            limit: the number of batches over all ranks if it is an int or above 1, otherwise a fraction of them.
        """
        if limit is not None and not (isinstance(limit, float) and limit == 1):
            batches = len(EvaluationOrder(len(rows), self.eval_batch_size))
            rows = rows[: int(limit if limit > 1 or isinstance(limit, int) else limit * batches) * self.eval_batch_size]
        rank, world = _rank(self.trainer)
        order = EvaluationOrder(len(rows), self.eval_batch_size, rank=rank, world=world)
        images, labels = Selection(self.faces.images, rows), self.faces.labels[rows]
        return FaceLoader(images, labels, rows, order, _device(self.trainer), resident_gib=self.resident_gib)


def _rank(trainer: L.Trainer | None) -> tuple[int, int]:
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def _device(trainer: L.Trainer | None) -> torch.device:
    return trainer.strategy.root_device if trainer else torch.device("cpu")
