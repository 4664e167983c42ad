"""Batched augmentation: the effect of each setting, and reproducibility."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fer_lightning.data.transforms.augment import AlbumentationsAugment, BatchAugment, Draws, sample, sample_inside


def batch(n: int = 64) -> torch.Tensor:
    return torch.rand(n, 1, 48, 48, generator=torch.Generator().manual_seed(0))


def rng(seed: int = 0, n: int = 64) -> Draws:
    return Draws(seed, n)


def test_samples_of_apple_gpus_have_the_same_borders() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 12, 9, generator=generator)
    grid = 3 * torch.rand(4, 7, 5, 2, generator=generator) - 1.5  # up to a quarter of the image outside of it
    torch.testing.assert_close(sample_inside(images, grid), sample(images, grid, "bilinear"))


def test_augmentation_without_settings_is_identity() -> None:
    assert torch.equal(BatchAugment(flip=0)(batch(), rng()), batch())


def test_flip_mirrors_left_to_right() -> None:
    assert torch.equal(BatchAugment(flip=1)(batch(), rng()), batch().flip(3))
    flipped = (BatchAugment(flip=0.5)(batch(1000), rng(n=1000)) == batch(1000).flip(3)).all((1, 2, 3))
    assert 430 < flipped.sum() < 570


def test_flip_is_the_same_with_a_warp() -> None:
    """The affine path mirrors too; a rotation too small to see must leave exactly the mirror image."""
    out = BatchAugment(flip=1, rotate=1e-6)(batch(), rng())
    torch.testing.assert_close(out, batch().flip(3), atol=1e-4, rtol=0)


def test_shift_moves_by_at_most_its_fraction() -> None:
    dot = torch.zeros(500, 1, 48, 48)
    dot[:, :, 23:25, 23:25] = 1
    out = BatchAugment(flip=0, shift=0.25)(dot, rng(n=500))
    centre = (out.sum(2).squeeze(1) @ torch.arange(48.0)) / out.sum((1, 2, 3)) - 23.5
    assert centre.abs().max() <= 12.5
    assert centre.min() < -9
    assert centre.max() > 9


@pytest.mark.parametrize("warp", [{}, {"rotate": 15.0, "scale": 0.1, "shift": 0.1}])
def test_crop_is_the_middle_of_the_warped_image(warp: dict[str, float]) -> None:
    out = BatchAugment(flip=0.5, crop=40, **warp)(batch(), rng())  # type: ignore[arg-type]
    whole = BatchAugment(flip=0.5, **warp)(batch(), rng())  # type: ignore[arg-type]
    torch.testing.assert_close(out, whole[:, :, 4:44, 4:44], atol=1e-4, rtol=0)


def test_crop_of_an_odd_number_of_pixels_is_mirrored_like_the_image() -> None:
    out, mirrored = (BatchAugment(flip=flip, crop=41)(batch(), rng()) for flip in (0, 1))
    assert out.shape == (64, 1, 41, 41)
    assert torch.equal(mirrored, out.flip(3))


@pytest.mark.parametrize("crop", [None, 40])
def test_first_side_shows_the_same_window_with_fewer_pixels(crop: int | None) -> None:
    smooth = F.avg_pool2d(F.pad(batch(), (4, 4, 4, 4), mode="replicate"), 9, stride=1)
    augment = BatchAugment(flip=0.5, rotate=10, scale=0.1, shift=0.1, crop=crop, first_side=24, full_from=0.5)
    full = augment(smooth, Draws(0, 64, progress=0.5))
    side = crop or 48
    assert full.shape == (64, 1, side, side)
    small = augment(smooth, Draws(0, 64, progress=0.0))
    assert small.shape == (64, 1, 24, 24)
    expected = F.interpolate(full, size=(24, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(small, expected, atol=0.03, rtol=0)


def test_first_side_grows_to_the_full_side() -> None:
    augment = BatchAugment(crop=40, first_side=24, full_from=0.5)
    sides = [augment.side(40, epoch / 20) for epoch in range(20)]
    assert sides == sorted(sides)
    assert sides[0] == 24
    assert set(sides) == {24, 28, 32, 36, 40}
    assert sides.index(40) == 10
    assert BatchAugment(crop=40).side(40, 0.0) == 40


def test_bicubic_interpolation_keeps_more_detail() -> None:
    """Of white noise, by the squares of each filter's weights: 4/9 are left of its variance by the bilinear one, where
    every place between pixels is as likely."""
    left = {}
    for mode in ("bilinear", "bicubic"):
        out = BatchAugment(flip=0, shift=0.25, interpolation=mode)(batch(500), rng(n=500))
        assert 0 <= out.min() <= out.max() <= 1
        left[mode] = out[:, :, 12:36, 12:36].var() / batch(500).var()
    assert left["bilinear"] == pytest.approx(4 / 9, abs=0.02)
    assert left["bicubic"] > 0.6


def test_rotation_and_scale_stay_in_range() -> None:
    bar = torch.zeros(300, 1, 48, 48)
    bar[:, :, 23:25, 34:38] = 1  # 12 pixels right of the centre
    out = BatchAugment(flip=0, rotate=30, scale=0.2)(bar, rng(n=300))
    mass = out.sum((1, 2, 3))
    x = (out.sum(2).squeeze(1) @ (torch.arange(48.0) - 23.5)) / mass
    y = (out.sum(3).squeeze(1) @ (torch.arange(48.0) - 23.5)) / mass
    angle, radius = torch.atan2(y, x).rad2deg(), torch.hypot(x, y)
    assert 25 < angle.abs().max() <= 31
    assert 0.78 * 12 <= radius.min() < 0.85 * 12
    assert 1.15 * 12 < radius.max() <= 1.22 * 12


def test_brightness_and_contrast_stay_in_range() -> None:
    grey = torch.full((300, 1, 8, 8), 0.5)
    shift = BatchAugment(flip=0, brightness=0.2)(grey, rng(n=300)) - 0.5
    assert 0.18 < shift.abs().max() <= 0.2
    spread = BatchAugment(flip=0, contrast=0.3)(batch(300) / 2 + 0.25, rng(n=300)).std((1, 2, 3)) / (
        batch(300) / 2 + 0.25
    ).std((1, 2, 3))
    assert 0.69 <= spread.min() < 0.75
    assert 1.2 < spread.max() <= 1.31


def test_erasing_covers_its_area_with_one_grey() -> None:
    out = BatchAugment(flip=0, erase=1, erase_area=(0.1, 0.2))(batch(300), rng(n=300))
    changed = (out != batch(300)).float().mean((1, 2, 3))
    assert changed.max() <= 0.25
    assert changed.mean() > 0.05
    first = (out[0] != batch(300)[0]).squeeze()
    assert len(out[0, 0][first].unique()) == 1


def test_results_are_images_and_differ_between_faces() -> None:
    augment = BatchAugment(rotate=20, scale=0.2, shift=0.1, brightness=0.5, contrast=0.5, erase=0.5)
    same = batch(1).expand(32, 1, 48, 48)
    out = augment(same, rng(n=32))
    assert out.shape == same.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert len(out.flatten(1).unique(dim=0)) == 32


def test_augmentation_depends_only_on_generator() -> None:
    augment = BatchAugment(rotate=20, scale=0.2, shift=0.1, brightness=0.5, contrast=0.5, erase=0.5)
    assert torch.equal(augment(batch(), rng(3)), augment(batch(), rng(3)))
    assert not torch.equal(augment(batch(), rng(3)), augment(batch(), rng(4)))


def test_albumentations_pipeline_has_a_seed_per_image() -> None:
    augment = AlbumentationsAugment([{"name": "Rotate", "limit": 30, "p": 1.0}])
    same = batch(1).expand(16, 1, 48, 48)
    out = augment(same, rng(5, 16))
    assert out.shape == same.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert len(out.flatten(1).unique(dim=0)) == 16
    assert torch.equal(out, augment(same, rng(5, 16)))


@pytest.mark.parametrize(
    "setting",
    [
        {"flip": 1.5},
        {"erase": -0.1},
        {"scale": 1.0},
        {"shift": -0.1},
        {"erase_area": [0.3, 0.1]},
        {"crop": 0},
        {"interpolation": "nearest"},
        {"batch_norm_images": -1},
        {"crop": 49},
    ],
)
def test_arguments_out_of_range_are_reported_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        BatchAugment(**setting)  # type: ignore[arg-type]
