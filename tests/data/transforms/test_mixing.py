"""Mixtures of two faces against the definitions of mixup, CutMix and Remix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fer_lightning.data.transforms.augment import Draws
from fer_lightning.data.transforms.mixing import Mix

COUNTS = torch.tensor([1000, 100, 900])


def mixed(mix: Mix, labels: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images are black and white in turn, so that pixel values show the weight of each in its mixture."""
    n = len(labels)
    images = (torch.arange(n) % 2).float().view(-1, 1, 1, 1).expand(n, 1, 48, 48)
    return mix(images, F.one_hot(torch.tensor(labels), 3).float(), Draws(seed, n), COUNTS)


def shares(images: torch.Tensor) -> torch.Tensor:
    """The weight of each image in its own mixture, float (B,)."""
    white = images.mean((1, 2, 3))
    return torch.where(torch.arange(len(images)) % 2 == 1, white, 1 - white)


@pytest.mark.parametrize("cut", [False, True])
def test_labels_are_mixed_like_images(cut: bool) -> None:
    images, targets = mixed(Mix(cut=cut), [0, 1] * 50)
    share = shares(images)
    labels = torch.tensor([0, 1] * 50)
    torch.testing.assert_close(targets[torch.arange(100), labels], share, atol=2e-4, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(100))
    assert share.min() < (0.4 if cut else 0.1) and share.max() > 0.9  # Beta(1, 1) is uniform; borders cut rectangles
    if cut:
        assert set(images.unique().tolist()) == {0.0, 1.0}


def test_shares_follow_the_beta_distribution() -> None:
    images, _ = mixed(Mix(alpha=0.2), [0, 1] * 2000)
    share = shares(images).numpy().clip(0, 1)
    expected = np.random.default_rng(0).beta(0.2, 0.2, 100_000)
    for q in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert (share < q).mean() == pytest.approx((expected < q).mean(), abs=0.03)


def test_mix_probability() -> None:
    images, _ = mixed(Mix(p=0.3), [0, 1] * 1000)
    assert (shares(images) < 0.9999).float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_nothing_is_mixed_in_the_last_phase() -> None:
    images, targets = batch_of_two = torch.rand(2, 1, 48, 48), torch.eye(3)[:2]
    mix = Mix(until=0.8)
    last = mix(images, targets, Draws(0, 2, progress=0.8), COUNTS)
    assert all(torch.equal(a, b) for a, b in zip(last, batch_of_two, strict=True))
    assert not torch.equal(mix(images, targets, Draws(0, 2, progress=0.79), COUNTS)[0], images)
    always = Mix()(images, targets, Draws(0, 2, progress=1.0), COUNTS)
    assert not torch.equal(always[0], images)


def test_remix_prefers_label_of_the_rare_class() -> None:
    labels = [0, 1] * 200
    images, targets = mixed(Mix(kappa=3, tau=0.5), labels)
    for share, target, label in zip(shares(images).tolist(), targets.tolist(), labels, strict=True):
        # Equation 7, with n_0 / n_1 = 10: the mixture is labelled 1 where that makes up more than half of it.
        rare = share > 0.5 if label == 1 else share < 0.5
        assert target[label] == pytest.approx(float(label == 1) if rare else share, abs=1e-4)


def test_remix_of_classes_of_similar_size_is_mixup() -> None:
    torch.testing.assert_close(mixed(Mix(kappa=3), [0, 2] * 50), mixed(Mix(), [0, 2] * 50))


def test_last_image_of_an_odd_batch_is_unchanged() -> None:
    images, targets = mixed(Mix(), [0, 1, 2])
    assert torch.equal(images[2], torch.zeros(1, 48, 48)) and targets[2].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("settings", "key"), [({"alpha": 0}, "alpha"), ({"p": 2}, "p "), ({"kappa": 0.5}, "kappa")])
def test_arguments_out_of_range_are_errors(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Mix(**settings)  # type: ignore[arg-type]
