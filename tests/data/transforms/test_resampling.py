"""Resampling: the requested counts, from training images only."""

from __future__ import annotations

import numpy as np
import pytest

from fer_lightning.data.selection import Selection
from fer_lightning.data.transforms.pipeline import Pipeline
from fer_lightning.data.transforms.resampling import ClassSampling, Resample, TrainingSet
from fer_lightning.errors import UserError

CLASSES = ("happy", "disgust", "surprise")
FLIP = [{"name": "HorizontalFlip", "p": 1.0}]


def training() -> TrainingSet:
    images = np.random.default_rng(0).integers(0, 256, (135, 48, 48), dtype=np.uint8)
    labels = np.repeat([0, 1, 2], [100, 5, 30]).astype(np.int64)
    return TrainingSet(Selection(images), labels, np.arange(1000, 1135), np.zeros(135, dtype=bool))


def test_counts_follow_the_factors() -> None:
    result = Resample({"happy": 0.8, "disgust": 6, "surprise": 1.2}, FLIP)(training(), CLASSES)
    assert result.counts(3).tolist() == [80, 30, 36]
    assert result.copied.sum() == 25 + 6
    assert not result.copied[:115].any()


def test_copies_are_augmented_and_distributed_evenly_over_originals() -> None:
    before = training()
    after = Resample({"disgust": 6}, FLIP)(before, CLASSES)
    for i in np.flatnonzero(after.copied):
        original = after.rows[i] - 1000
        assert after.labels[i] == before.labels[original]
        assert (after.images[i] == before.images[original][:, ::-1]).all()
    assert np.unique(after.rows[after.copied], return_counts=True)[1].tolist() == [5] * 5


def test_resample_does_not_change_originals() -> None:
    before = training()
    after = Resample({"happy": 0.8, "disgust": 2.5}, FLIP)(before, CLASSES)
    kept = ~after.copied
    assert (after.images[kept] == before.images[after.rows[kept] - 1000]).all()
    assert len(np.unique(after.rows[kept])) == kept.sum()


def test_resample_depends_only_on_seed() -> None:
    transforms = [{"name": "Rotate", "limit": 20, "p": 1.0}]
    first, same, other = (
        Resample({"happy": 0.5, "disgust": 4}, transforms, seed=s)(training(), CLASSES) for s in (1, 1, 2)
    )
    assert np.array_equal(first.images, same.images)
    assert not np.array_equal(first.images, other.images)
    disgust = first.images[first.labels == 1]
    assert len(np.unique(disgust, axis=0)) == len(disgust)  # no two copies look alike


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"hapy": 2}, "did you mean 'happy'"),
        ({"zebra": 2}, "happy, disgust, surprise"),
        ({"happy": 0.0}, "leaves no training image of happy"),
        ({"happy": -1}, "leaves no training image of happy"),
    ],
)
def test_invalid_factors_are_reported_by_key(factors: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Resample(factors, FLIP)(training(), CLASSES)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"name": "HorizontalFlop"}], "HorizontalFlip"),
        ([{"name": "Rotate", "limmit": 3}], "limmit"),
        ([{"name": "Rotate", "limit": "far"}], "Rotate"),
        ([{"p": 1.0}], "not a transform"),
    ],
)
def test_invalid_transforms_are_reported_by_name(transforms: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pipeline(transforms, key="imbalance.resample.transforms")


def test_compositions_hold_transforms_and_depend_on_the_seed() -> None:
    inner = [{"name": "HorizontalFlip", "p": 1.0}, {"name": "GaussNoise", "p": 1.0}]
    pipeline = Pipeline([{"name": "OneOf", "p": 1.0, "transforms": inner}], key="augment.transforms")
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 1), np.uint8)
    results = [pipeline(image, seed) for seed in range(12)]
    flipped = [np.array_equal(result, image[:, ::-1]) for result in results]
    assert 0 < sum(flipped) < 12
    for seed in (5, 0):
        np.testing.assert_array_equal(pipeline(image, seed), results[seed])
    with pytest.raises(UserError, match=r"augment\.transforms: 'Flop' is not a transform"):
        Pipeline([{"name": "OneOf", "transforms": [{"name": "Flop"}]}], key="augment.transforms")
    with pytest.raises(UserError, match="OneOf needs `transforms`, a list"):
        Pipeline([{"name": "OneOf"}], key="augment.transforms")


def test_a_transform_that_fails_is_named_with_its_key() -> None:
    pipeline = Pipeline([{"name": "ISONoise", "p": 1.0}], key="augment.transforms")
    with pytest.raises(UserError, match=r"augment\.transforms: albumentations failed \(.*grey images of one channel"):
        pipeline(np.zeros((48, 48, 1), np.uint8), 0)


def test_a_pipeline_must_keep_shape_and_type() -> None:
    pipeline = Pipeline([{"name": "Resize", "height": 32, "width": 32}], key="augment.transforms")
    with pytest.raises(UserError, match="remove steps like Resize"):
        pipeline(np.zeros((48, 48, 1), np.uint8), 0)


def test_class_sampling_follows_a_power_of_the_class_size() -> None:
    counts = np.array([3995, 436, 0, 7215])
    assert ClassSampling(q=0).probabilities(counts) == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert ClassSampling(q=1).probabilities(counts) == pytest.approx(counts / counts.sum())
    roots = np.array([3995**0.5, 436**0.5, 0, 7215**0.5])
    assert ClassSampling(q=0.5).probabilities(counts) == pytest.approx(roots / roots.sum())
    with pytest.raises(ValueError, match="q is a fraction"):
        ClassSampling(q=2)
