"""Order of images, parts of ranks, and batches."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from fer_lightning.data.loader import EvaluationOrder, FaceLoader, TrainingOrder
from fer_lightning.data.selection import Selection
from fer_lightning.data.transforms.augment import BatchAugment
from fer_lightning.data.transforms.mixing import Mix


def loader(order: TrainingOrder | EvaluationOrder, **options: object) -> FaceLoader:
    n = order.n
    images = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 48, 48), np.uint8)
    labels, rows = np.arange(n) % 3, np.arange(n) + 100
    return FaceLoader(Selection(images), labels, rows, order, torch.device("cpu"), **options)  # type: ignore[arg-type]


def rows(loader: FaceLoader) -> list[list[int]]:
    return [(batch.rows - 100).tolist() for batch in loader]


def training(n: int = 50, batch_size: int = 8, epoch: int = 0, rank: int = 0, world: int = 1) -> TrainingOrder:
    order = TrainingOrder(n, batch_size, seed=3, rank=rank, world=world)
    order.set_epoch(epoch)
    return order


def test_batches_have_matching_images_labels_and_rows() -> None:
    for batch in loader(training()):
        assert batch.images.shape[1:] == (1, 48, 48)
        index = batch.rows - 100
        assert torch.equal(batch.labels, index % 3)
        torch.testing.assert_close(batch.images[:, 0, 0, 0], index / 255)


@pytest.mark.parametrize(("n", "sizes"), [(11, [4, 4]), (8, [4, 4]), (3, [3])])
def test_training_batches_are_full_unless_there_is_only_one(n: int, sizes: list[int]) -> None:
    batches = loader(training(n, 4))
    assert [len(b) for b in rows(batches)] == sizes
    assert len(batches) == len(sizes)


def test_epochs_are_shuffled_by_seed_and_epoch() -> None:
    def order(epoch: int) -> list[int]:
        return list(chain(*rows(loader(training(48, epoch=epoch)))))

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(1)) == list(range(48))


@pytest.mark.parametrize("world", [2, 3])
def test_training_batch_has_the_same_images_on_any_number_of_devices(world: int) -> None:
    alone = rows(loader(training(50, 12)))
    shards = [rows(loader(training(50, 12, rank=rank, world=world))) for rank in range(world)]
    assert {len(batch) for shard in shards for batch in shard} == {12 // world}
    for batch, parts in zip(alone, zip(*shards, strict=True), strict=True):
        assert sorted(batch) == sorted(chain(*parts))


@pytest.mark.parametrize(("n", "batch_size", "world"), [(11, 4, 1), (11, 4, 2), (11, 4, 3), (2, 4, 3), (40, 4, 3)])
def test_every_image_is_scored_once_in_the_batches_of_one_device(n: int, batch_size: int, world: int) -> None:
    alone = rows(loader(EvaluationOrder(n, batch_size)))
    shards = [rows(loader(EvaluationOrder(n, batch_size, rank=rank, world=world))) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1, "ranks wait for each other: all need equally many batches"
    in_turn = [shards[k % world][k // world] for k in range(len(shards[0]) * world)]
    assert [batch for batch in in_turn if batch] == alone
    assert list(chain(*alone)) == list(range(n))


def test_no_images_to_score_give_no_batch() -> None:
    assert len(loader(EvaluationOrder(0, 4, rank=1, world=2))) == 0


@pytest.mark.parametrize("order", [training(), EvaluationOrder(50, 8)])
def test_images_read_for_each_batch_are_those_on_the_device(order: TrainingOrder | EvaluationOrder) -> None:
    options = {"augment": BatchAugment()} if isinstance(order, TrainingOrder) else {}
    for read, resident in zip(loader(order, **options, resident_gib=0.0), loader(order, **options), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(read[:3], resident[:3], strict=True))


def test_augmentation_differs_by_epoch_and_batch_and_repeats_with_them() -> None:
    def offsets(epoch: int) -> torch.Tensor:
        batches = list(loader(training(8, 4, epoch=epoch), augment=BatchAugment(flip=0, brightness=0.5)))
        return torch.cat([b.images[:, 0, 0, 0] - (b.rows - 100) / 255 for b in batches])

    assert torch.equal(offsets(0), offsets(0))
    assert not torch.equal(offsets(0), offsets(1))
    assert not torch.equal(offsets(0)[:4], offsets(0)[4:])


def test_image_is_augmented_equally_on_any_number_of_devices() -> None:
    augment = BatchAugment(rotate=20, scale=0.2, shift=0.1, brightness=0.2, erase=0.5)

    def by_row(rank: int, world: int) -> dict[int, torch.Tensor]:
        batches = loader(training(24, 12, rank=rank, world=world), augment=augment)
        return {int(row): image for batch in batches for row, image in zip(batch.rows, batch.images, strict=True)}

    alone, together = by_row(0, 1), by_row(0, 2) | by_row(1, 2)
    assert alone.keys() == together.keys()
    for row, image in alone.items():
        assert torch.equal(image, together[row])


def test_interrupted_epoch_resumes_after_the_served_images() -> None:
    whole = loader(training(48))
    seen = []
    for batch in whole:
        seen.append((batch.rows - 100).tolist())
        if len(seen) == 2:
            break
    rest = loader(training(48), skip=whole.served)
    assert whole.served == 16
    assert seen + rows(rest) == rows(loader(training(48)))
    assert len(rows(rest)) == 6, "the next epoch is whole again"


def test_drawn_images_follow_the_probabilities() -> None:
    probabilities = np.where(np.arange(1000) % 10 == 0, 0.5 / 100, 0.5 / 900)
    order = TrainingOrder(1000, 1000, seed=1, probabilities=probabilities)
    drawn = np.concatenate([_epoch(order, epoch) for epoch in range(20)])
    assert (drawn % 10 == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(_epoch(order, 3), _epoch(order, 3)) and not np.array_equal(_epoch(order, 3), _epoch(order, 4))


def test_drawing_starts_in_the_configured_epoch() -> None:
    order = TrainingOrder(1000, 1000, probabilities=np.full(1000, 1e-3), drawn_from=3)
    assert [len(set(_epoch(order, epoch).tolist())) == 1000 for epoch in range(5)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("world", [2, 4])
def test_batch_is_mixed_equally_on_any_number_of_devices(world: int) -> None:
    counts = np.array([17, 17, 16])

    def batches(rank: int, world: int) -> list[torch.Tensor]:
        order = training(50, 16, rank=rank, world=world)
        return [torch.cat([b.images.flatten(1), b.targets], 1) for b in loader(order, mix=Mix(), class_counts=counts)]  # type: ignore[list-item]

    ranks = [batches(rank, world) for rank in range(world)]
    for number, alone in enumerate(batches(0, 1)):
        assert torch.equal(alone, torch.cat([batch[number] for batch in ranks]))


def _epoch(order: TrainingOrder, epoch: int) -> np.ndarray:
    order.set_epoch(epoch)
    return order.batch(0)
