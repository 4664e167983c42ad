"""Drawn faces: the same on every machine, imbalanced like FER-2013, learnable but not by a linear model."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fer_lightning.data.synthetic import MIN_PER_CLASS, TRAINING_COUNTS, synthetic
from fer_lightning.data.table import FER_CLASSES, FaceTable
from fer_lightning.errors import UserError

GOLDEN = "510693f5b96fc38189097942d92248dfe0f97bb58731b7afe3fb5bb51a2f0605"
"""Of 100 faces. If it must change, increase FORMAT, or caches and comparisons mix old faces with new ones."""


@pytest.fixture(scope="module")
def faces() -> FaceTable:
    return synthetic(n_train=1500, n_val=200, n_test=500)


def test_bytes_are_the_same_on_every_machine() -> None:
    faces = synthetic(n_train=60, n_val=20, n_test=20)
    digest = hashlib.sha256(faces.images.tobytes() + faces.labels.astype("<i8").tobytes()).hexdigest()
    assert digest == GOLDEN


def test_table_has_the_three_kaggle_splits(faces: FaceTable) -> None:
    assert [len(faces.rows(split)) for split in ("train", "public", "private")] == [1500, 200, 500]
    assert faces.classes == FER_CLASSES
    assert faces.source == "synthetic"
    assert faces.ids[17] == b"synthetic train 17"
    assert faces.ids[1500] == b"synthetic public 0"
    assert len(np.unique(faces.ids)) == len(faces)


def test_labels_follow_the_imbalance_of_fer2013(faces: FaceTable) -> None:
    share = np.array(TRAINING_COUNTS) / sum(TRAINING_COUNTS)
    for split in ("train", "public", "private"):
        rows = faces.rows(split)
        counts = faces.counts(rows)
        assert counts.min() >= MIN_PER_CLASS
        np.testing.assert_allclose(counts / len(rows), share, atol=0.02)


def test_labels_are_shuffled(faces: FaceTable) -> None:
    first, second = np.array_split(faces.rows("train"), 2)
    np.testing.assert_allclose(faces.counts(first)[0], faces.counts(second)[0], rtol=0.4)


def test_synthetic_faces_depend_only_on_seed() -> None:
    one, same, other = (synthetic(n_train=30, n_val=10, n_test=10, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert not np.array_equal(one.images, other.images)


def test_training_faces_do_not_depend_on_the_other_splits() -> None:
    small, large = (synthetic(n_train=30, n_val=0, n_test=n) for n in (0, 40))
    np.testing.assert_array_equal(small.images, large.images[:30])


def test_all_faces_differ(faces: FaceTable) -> None:
    assert len(np.unique(faces.duplicate_groups)) == len(faces)


def test_seven_faces_are_one_of_each_class() -> None:
    assert synthetic(n_train=7, n_val=7, n_test=0).counts().tolist() == [2] * 7


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"n_train": 6}, "n_train=6"),
        ({"n_train": 0}, "n_train=0"),
        ({"n_val": -1}, "n_val=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_invalid_parameters_are_reported_by_key(wrong: dict[str, int], key: str) -> None:
    with pytest.raises(UserError, match=f"data.synthetic.{key}:"):
        synthetic(**{"n_train": 20, "n_val": 20, "n_test": 20, **wrong})


def test_linear_model_is_above_chance_and_far_from_a_network(faces: FaceTable) -> None:
    """A small convolutional network reaches 80–85 % after six epochs of 3,000 faces."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, test = faces.rows("train"), faces.rows("private")
    pixels = faces.images.reshape(len(faces), -1) / 255
    accuracy = (
        linear_model.RidgeClassifier(alpha=100)
        .fit(pixels[train], faces.labels[train])
        .score(pixels[test], faces.labels[test])
    )
    assert max(TRAINING_COUNTS) / sum(TRAINING_COUNTS) + 0.02 < accuracy < 0.6
