"""Partitions: disjoint, stratified, duplicates together."""

from __future__ import annotations

import numpy as np
import pytest

from fer_lightning.data.protocols import partition
from fer_lightning.data.table import SPLITS, FaceTable
from fer_lightning.errors import UserError


def table(**images: int) -> FaceTable:
    """Random faces of three classes (60/30/10 %), so many per split; every fourth duplicates its predecessor."""
    rng = np.random.default_rng(0)
    n = sum(images.values())
    faces = rng.integers(0, 256, (n, 48, 48), dtype=np.uint8)
    labels = rng.choice(3, n, p=[0.6, 0.3, 0.1]).astype(np.int64)
    faces[3::4], labels[3::4] = faces[2::4][: len(faces[3::4])], labels[2::4][: len(labels[3::4])]
    split = np.repeat([SPLITS.index(s) for s in images], list(images.values())).astype(np.int8)
    ids = np.array([f"row {i}".encode() for i in range(n)])
    return FaceTable(faces, labels, split, ids, ("a", "b", "c"), "made up", "0")


KAGGLE = {"train": 1000, "public": 200, "private": 200}


@pytest.mark.parametrize("name", ["kaggle", "report", "kfold"])
@pytest.mark.parametrize("images", [KAGGLE, {"train": 1000, "test": 400}, {"train": 1000}, {"train": 800, "val": 99}])
def test_parts_are_disjoint_and_sorted(name: str, images: dict[str, int]) -> None:
    faces = table(**images)
    parts = partition(faces, name)  # type: ignore[arg-type]
    together = np.concatenate([parts.train, parts.val, parts.test])
    assert len(np.unique(together)) == len(together)
    for rows in (parts.train, parts.val, parts.test):
        assert len(rows)
        assert (np.diff(rows) > 0).all()


def test_kaggle_uses_the_official_splits() -> None:
    faces = table(**KAGGLE)
    parts = partition(faces, "kaggle")
    assert (parts.train == faces.rows("train")).all()
    assert (parts.val == faces.rows("public")).all()
    assert (parts.test == faces.rows("private")).all()


def test_report_tests_on_public_and_private() -> None:
    faces = table(**KAGGLE)
    parts = partition(faces, "report", holdout=0.2)
    assert (parts.test == faces.rows("public", "private")).all()
    assert (np.union1d(parts.train, parts.val) == faces.rows("train")).all()


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_hold_out_is_stratified_and_keeps_duplicates_together(fraction: float) -> None:
    faces = table(**KAGGLE)
    parts = partition(faces, "report", holdout=fraction)
    assert not np.isin(faces.duplicate_groups[parts.val], faces.duplicate_groups[parts.train]).any()
    share = faces.counts(parts.val) / faces.counts(faces.rows("train"))
    assert share == pytest.approx([fraction] * 3, abs=0.025)


def test_folds_cover_every_image_once() -> None:
    faces = table(**KAGGLE)
    folds = [partition(faces, "kfold", folds=4, fold=i) for i in range(4)]
    assert (np.sort(np.concatenate([f.val for f in folds])) == faces.rows("train", "public")).all()
    for fold in folds:
        assert not np.isin(faces.duplicate_groups[fold.val], faces.duplicate_groups[fold.train]).any()
        assert (fold.test == faces.rows("private")).all()


def test_hold_out_depends_only_on_seed() -> None:
    faces = table(**KAGGLE)
    first, same, other = (partition(faces, "report", seed=s) for s in (0, 0, 1))
    assert (first.val == same.val).all()
    assert not np.array_equal(first.val, other.val)


def test_clean_marks_images_without_duplicate_in_training() -> None:
    faces = table(train=400, private=40, public=40)
    images = faces.images.copy()
    images[405] = images[7]
    faces = FaceTable(images, faces.labels, faces.split, faces.ids, faces.classes, "made up", "0")
    parts = partition(faces, "report")
    assert np.flatnonzero(~parts.clean[parts.test]).tolist() == [5]
    assert not parts.clean[parts.train].any()


def test_unlabelled_test_images_are_predicted_with_a_labelled_hold_out() -> None:
    faces = table(train=1000, test=50)
    faces.labels[1000:] = -1
    parts = partition(faces, "kaggle")
    assert np.isin(np.arange(1000, 1050), parts.test).all()
    assert (faces.labels[parts.test] != -1).sum() == pytest.approx(100, abs=3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"holdout": 0.0}, "holdout"),
        ({"holdout": 0.7}, "holdout"),
        ({"name": "kfold", "fold": 5}, "fold=5"),
        ({"name": "kfold", "folds": 1}, "folds=1"),
    ],
)
def test_options_out_of_range_are_reported_by_name(options: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        partition(table(**KAGGLE), **options)  # type: ignore[arg-type]


def test_class_without_training_images_is_named() -> None:
    faces = table(train=100, private=10)
    faces.labels[:100] %= 2
    with pytest.raises(UserError, match=r"no training image of c.*data\.classes=\[a,b\]"):
        partition(faces)


def test_no_training_images() -> None:
    with pytest.raises(UserError, match="no training images"):
        partition(table(private=10))


def test_too_few_images_for_a_part_are_reported() -> None:
    few = table(train=28, val=14)
    with pytest.raises(UserError, match=r"28 training images are too few for test images by protocol.holdout=0.01"):
        partition(few, "kaggle", holdout=0.01)
