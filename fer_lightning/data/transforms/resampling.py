"""Strategies against class imbalance: the number of training images per class, or how often they are drawn."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.seeding import stream_rng, stream_seed
from fer_lightning.data.selection import Selection
from fer_lightning.data.transforms.pipeline import Pipeline
from fer_lightning.errors import UserError


@dataclass(frozen=True)
class TrainingSet:
    """The training set.

    Attributes:
        images: uint8 (N, 48, 48), read when they are indexed.
        labels: int64 (N,).
        rows: int64 (N,), the row of the table that each image is, or was copied from.
        copied: bool (N,), true for augmented copies.
        targets: float32 (N, C), distributions to learn instead of the labels, if there are any.
    """

    images: Selection
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    copied: NDArray[np.bool_]
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, n_classes: int) -> NDArray[np.int64]:
        return np.bincount(self.labels, minlength=n_classes)


MAX_FACTOR = 1000
"""Largest factor of `Resample`: FER-2013's rarest class needs 17 to become as large as the most frequent one."""


class Resample:
    """Grow or shrink classes: the student report's "balanced data".

    A class of n images gets round(f · n): for f < 1 a random part is dropped, for f > 1 augmented copies are added,
    distributed evenly over the originals.

    Args:
        factors: f by class name; 1 for classes that are not named.
        transforms: the albumentations pipeline for the copies, see `Pipeline`.
        seed: of the dropped images and the augmentation.

    Raises:
        ValueError: a factor is not a number, or too large.
    """

    def __init__(self, factors: Mapping[str, float], transforms: Sequence[Mapping[str, Any]], seed: int = 0) -> None:
        for name, factor in factors.items():
            if isinstance(factor, bool | str) or factor is None or not factor <= MAX_FACTOR:
                raise ValueError(f"factors.{name} must be a number up to {MAX_FACTOR}, not {factor}")
        self.factors, self.transforms, self.seed = dict(factors), list(transforms), seed

    def __call__(self, training: TrainingSet, classes: Sequence[str]) -> TrainingSet:
        """The resampled training set: the remaining images in their order, then the copies by class.

        Raises:
            UserError: a factor names a class that the data does not have, is negative, or empties a class.
        """
        n_images = training.counts(len(classes))
        rng = stream_rng("resampling", self.seed)
        keep = np.ones(len(training), dtype=bool)
        originals: list[NDArray[np.int64]] = []
        for name, factor in self.factors.items():
            if factor == 1:
                continue
            if name not in classes:
                near = difflib.get_close_matches(name, classes, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"set it to 1; the classes are {', '.join(classes)}"
                raise UserError(f"imbalance.resample.factors.{name}: the data has no class '{name}'; {hint}")
            members = np.flatnonzero(training.labels == classes.index(name))
            target = round(factor * int(n_images[classes.index(name)]))
            if target < 1:
                raise UserError(
                    f"imbalance.resample.factors.{name}={factor} leaves no training image of {name}; raise it"
                )
            if target < len(members):
                keep[rng.permutation(members)[target:]] = False
            else:
                rounds = [rng.permutation(members) for _ in range(-(-target // len(members)) - 1)]
                originals.append(np.concatenate([*rounds, members[:0]])[: target - len(members)])
        remaining = np.flatnonzero(keep)
        source = np.concatenate([remaining, *originals]).astype(np.int64)
        copies = training.images[source[len(remaining) :]]
        if len(copies):
            pipeline = Pipeline(self.transforms, key="imbalance.resample.transforms")
            for i, image in enumerate(copies):
                seed = stream_seed("copies", self.seed, len(remaining) + i) % 2**31
                copies[i] = pipeline(image[..., None], seed)[..., 0]
        images = training.images.only(remaining, copies)
        copied = np.arange(len(source)) >= len(remaining)
        targets = None if training.targets is None else training.targets[source]
        return TrainingSet(images, training.labels[source], training.rows[source], copied, targets)


@dataclass(frozen=True)
class ClassSampling:
    """Draws images with replacement, of a class of n images with a probability proportional to nᑫ (Kang et al. 2020,
    arXiv:1910.09217, equation 1). The size of an epoch does not change.

    Args:
        q: 0 for all classes equally often, ½ for the square root of their size, 1 for the frequencies of the data.
        after: fraction of the epochs after which it applies.

    Raises:
        ValueError: an argument is out of range.
    """

    q: float = 0.0
    after: float = 0.0

    def __post_init__(self) -> None:
        for name, value, top in (("q", self.q, 1.0), ("after", self.after, 0.999)):
            if not 0 <= value <= top:
                raise ValueError(f"{name} is a fraction, from 0 to {top:g}, not {value}")

    def probabilities(self, class_counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """The probability of each class, float (C,); 0 for one without images."""
        sizes: NDArray[np.float64] = np.where(class_counts > 0, np.maximum(class_counts, 1.0) ** self.q, 0.0)
        sizes /= sizes.sum()
        return sizes
