"""Order, shards and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fer_lightning.data.augment import BatchAugment
from fer_lightning.data.loader import FaceLoader, ShardedSampler


def loader(n: int = 11, batch_size: int = 4, epoch: int = 0, **options: object) -> FaceLoader:
    images = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 48, 48), np.uint8)
    sampler = ShardedSampler(n, shuffle=bool(options.pop("shuffle", False)), seed=3)
    sampler.set_epoch(epoch)
    labels = np.arange(n) % 3
    return FaceLoader(
        images,
        labels,
        np.arange(n) + 100,
        sampler,
        batch_size,
        torch.device("cpu"),
        **options,  # type: ignore[arg-type]
    )


def test_batches_carry_images_labels_and_rows_that_belong_together() -> None:
    for batch in loader(shuffle=True):
        assert batch.images.shape[1:] == (1, 48, 48)
        index = batch.rows - 100
        assert torch.equal(batch.labels, index % 3)
        torch.testing.assert_close(batch.images[:, 0, 0, 0], index / 255)


@pytest.mark.parametrize(("n", "drop_last", "sizes"), [(11, False, [4, 4, 3]), (11, True, [4, 4]), (3, True, [3])])
def test_the_last_batch(n: int, drop_last: bool, sizes: list[int]) -> None:
    batches = loader(n, drop_last=drop_last)
    assert [len(b.rows) for b in batches] == sizes
    assert len(batches) == len(sizes)


def test_epochs_are_shuffled_by_seed_and_epoch() -> None:
    def order(epoch: int) -> list[int]:
        return torch.cat([b.rows for b in loader(50, epoch=epoch, shuffle=True)]).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(1)) == list(range(100, 150))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_in_order_hold_each_image_exactly_once(world: int) -> None:
    shards = [ShardedSampler(11, shuffle=False, rank=r, world=world) for r in range(world)]
    assert sorted(np.concatenate([s.indices() for s in shards]).tolist()) == list(range(11))
    assert [len(s) for s in shards] == [len(s.indices()) for s in shards]


@pytest.mark.parametrize("world", [2, 3])
def test_shuffled_shards_are_disjoint_and_equally_long(world: int) -> None:
    shards = [ShardedSampler(11, shuffle=True, seed=1, rank=r, world=world).indices() for r in range(world)]
    together = np.concatenate(shards)
    assert len(np.unique(together)) == len(together)
    assert {len(s) for s in shards} == {11 // world}


def test_augmentation_differs_by_epoch_and_batch_and_repeats_with_them() -> None:
    def pixels(epoch: int) -> torch.Tensor:
        return torch.cat([b.images for b in loader(8, epoch=epoch, augment=BatchAugment(flip=0, brightness=0.5))])

    assert torch.equal(pixels(0), pixels(0))
    assert not torch.equal(pixels(0), pixels(1))
    offsets = pixels(0)[:, 0, 0, 0] - torch.arange(8) / 255
    assert not torch.equal(offsets[:4], offsets[4:])
