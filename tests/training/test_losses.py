"""Losses against their formulas, computed without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fer_lightning.training.losses import (
    LDAM,
    BalancedSoftmax,
    ClassLoss,
    CrossEntropy,
    Focal,
    LogitAdjusted,
    Weights,
    class_weights,
    log_prior,
)

COUNTS = [3995, 436, 4097, 7215, 4830, 3171, 4965]


def example() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(64, 7))), torch.from_numpy(rng.integers(0, 7, 64))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, "inverse"])
def test_cross_entropy_is_pytorch_s(weights: Weights | None, smoothing: float) -> None:
    logits, labels = example()
    frequencies = None if weights is None else 1 / torch.tensor(COUNTS, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, frequencies, label_smoothing=smoothing)
    loss = CrossEntropy(COUNTS, weights=weights, label_smoothing=smoothing)
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_are_inverse_frequencies_with_mean_one() -> None:
    weight = CrossEntropy(COUNTS, weights="inverse").weight
    assert weight is not None
    assert weight.mean().item() == pytest.approx(1)
    products = weight.numpy() * np.array(COUNTS)
    assert products == pytest.approx(np.full(7, products[0]), rel=1e-5)


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    logits, labels = example()
    assert CrossEntropy(COUNTS)(logits.bfloat16(), labels).dtype == torch.float32


def test_weights_by_the_effective_number_of_images() -> None:
    beta = 0.999
    effective = np.array([sum(beta**i for i in range(n)) for n in COUNTS])  # proposition 1 of Cui et al., by hand
    expected = 1 / effective * 7 / (1 / effective).sum()
    assert class_weights(COUNTS, "effective", beta).numpy() == pytest.approx(expected, rel=1e-5)
    assert class_weights(COUNTS, "effective", 0.0).numpy() == pytest.approx(np.ones(7))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(gamma: float) -> None:
    logits, labels = example()
    p = np.exp(log_softmax(logits.numpy()))[np.arange(64), labels.numpy()]
    expected = -((1 - p) ** gamma * np.log(p)).mean()
    assert Focal(COUNTS, gamma=gamma)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_focal_of_a_certain_answer_has_a_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    Focal([1, 1], gamma=0.5)(logits, torch.tensor([0])).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_balanced_softmax() -> None:
    logits, labels = example()
    odds = np.array(COUNTS) * np.exp(logits.numpy())
    expected = -np.log(odds[np.arange(64), labels.numpy()] / odds.sum(1)).mean()
    assert BalancedSoftmax(COUNTS)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjusted(tau: float) -> None:
    logits, labels = example()
    pi = np.array(COUNTS) / sum(COUNTS)
    z, y = logits.numpy(), labels.numpy()
    # Equation 10 of Menon et al. as printed: log(1 + Σ_{y' ≠ y} (π_y' / π_y)^τ e^{f_y' − f_y}).
    expected = np.mean(
        [
            np.log1p(sum((pi[k] / pi[y[i]]) ** tau * np.exp(z[i, k] - z[i, y[i]]) for k in range(7) if k != y[i]))
            for i in range(64)
        ]
    )
    assert LogitAdjusted(COUNTS, tau=tau)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_the_prior_is_the_log_of_each_share() -> None:
    assert log_prior(COUNTS).exp().numpy() == pytest.approx(np.array(COUNTS) / sum(COUNTS), rel=1e-5)


def test_ldam() -> None:
    cosines, labels = (example()[0] / 4).clamp(-1, 1), example()[1]
    margins = np.array(COUNTS, float) ** -0.25
    margins *= 0.5 / margins.max()
    lowered = cosines.clone()
    lowered[torch.arange(64), labels] -= torch.from_numpy(margins)[labels]
    expected = F.cross_entropy(30 * lowered, labels)
    assert LDAM(COUNTS)(30 * cosines, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_deferred_weights_come_in_force_late() -> None:
    logits, labels = example()
    loss = CrossEntropy(COUNTS, weights="inverse", after=0.8)
    plain, weighted = CrossEntropy(COUNTS)(logits, labels), CrossEntropy(COUNTS, weights="inverse")(logits, labels)
    assert loss(logits, labels) == plain
    loss.in_force = True
    assert loss(logits, labels) == weighted


@pytest.mark.parametrize("weights", [None, "inverse"])
@pytest.mark.parametrize("kind", [CrossEntropy, Focal, BalancedSoftmax])
def test_a_mixed_target_costs_what_its_parts_cost(kind: type[ClassLoss], weights: str | None) -> None:
    logits, labels = example()
    loss = kind(COUNTS, weights=weights, label_smoothing=0.1)  # type: ignore[arg-type]
    whole = F.one_hot(labels, 7).double()
    assert loss(logits, whole).item() == pytest.approx(loss(logits, labels).item(), rel=1e-6)
    if weights is None:
        other = whole.roll(1, 0)
        mixed = loss(logits, 0.3 * whole + 0.7 * other)
        assert mixed.item() == pytest.approx((0.3 * loss(logits, whole) + 0.7 * loss(logits, other)).item(), rel=1e-5)


def test_what_is_not_defined_is_refused() -> None:
    for settings, key in (
        ({"after": 1.0}, "after"),
        ({"weights": "many"}, "weights"),
        ({"weights": "effective", "beta": 1}, "beta"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ):
        with pytest.raises(ValueError, match=key):
            CrossEntropy(COUNTS, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every class"):
        CrossEntropy([0, 1, 2])
    with pytest.raises(ValueError, match="gamma"):
        Focal(COUNTS, gamma=-1)
    with pytest.raises(ValueError, match="one true class"):
        LDAM(COUNTS, label_smoothing=0.1)


@pytest.mark.parametrize("kind", [CrossEntropy, Focal, BalancedSoftmax])
def test_autocast_does_not_round_the_weights(kind: type[ClassLoss]) -> None:
    logits, labels = example()
    loss = kind(COUNTS, weights="inverse")
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(logits.float(), labels)
    torch.testing.assert_close(inside, loss(logits.float(), labels), rtol=1e-6, atol=0)
