"""Losses against their formulas, computed without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fer_lightning.model.losses import CrossEntropy

COUNTS = [3995, 436, 4097, 7215, 4830, 3171, 4965]


def example() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(64, 7))), torch.from_numpy(rng.integers(0, 7, 64))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_plain_cross_entropy() -> None:
    logits, labels = example()
    expected = -log_softmax(logits.numpy())[np.arange(64), labels.numpy()].mean()
    assert CrossEntropy(COUNTS)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_weights_are_inverse_frequencies_with_mean_one() -> None:
    weight = CrossEntropy(COUNTS, weighted=True).weight
    assert weight is not None
    assert weight.mean().item() == pytest.approx(1)
    products = weight.numpy() * np.array(COUNTS)
    assert products == pytest.approx(np.full(7, products[0]), rel=1e-5)


def test_weighted_cross_entropy() -> None:
    logits, labels = example()
    w = 1 / np.array(COUNTS)
    picked = -log_softmax(logits.numpy())[np.arange(64), labels.numpy()]
    expected = (w[labels] * picked).sum() / w[labels].sum()
    assert CrossEntropy(COUNTS, weighted=True)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_equal_counts_weigh_nothing() -> None:
    logits, labels = example()
    torch.testing.assert_close(
        CrossEntropy([5] * 7, weighted=True)(logits, labels), CrossEntropy([5] * 7)(logits, labels)
    )


def test_label_smoothing() -> None:
    logits, labels = example()
    target = np.full((64, 7), 0.1 / 7)
    target[np.arange(64), labels] += 0.9
    expected = -(target * log_softmax(logits.numpy())).sum(1).mean()
    assert CrossEntropy(COUNTS, label_smoothing=0.1)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    logits, labels = example()
    assert CrossEntropy(COUNTS)(logits.bfloat16(), labels).dtype == torch.float32


def test_label_smoothing_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossEntropy(COUNTS, label_smoothing=1.0)
