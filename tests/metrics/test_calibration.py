"""Temperature and threshold, against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fer_lightning.metrics import calibration
from fer_lightning.metrics.calibration import NEVER_SURE, calibrated, choose_threshold, fit, fit_temperature


def drawn(n: int = 2000, temperature: float = 2.5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits that are `temperature` times too large, and labels drawn from the right probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (n, 7))
    odds = np.exp(logits)
    labels = (odds.cumsum(1) / odds.sum(1, keepdims=True) < rng.random((n, 1))).sum(1)
    return temperature * logits, labels


def test_temperature_is_where_the_gradient_of_the_cross_entropy_vanishes() -> None:
    logits, labels = drawn()
    temperature = torch.tensor(fit_temperature(logits, labels), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits) / temperature, torch.from_numpy(labels))
    (gradient,) = torch.autograd.grad(loss, temperature)
    assert abs(float(gradient)) < 1e-5
    assert temperature.item() == pytest.approx(2.5, rel=0.1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_temperature_follows_the_scale_of_the_logits(scale: float) -> None:
    logits, labels = drawn(500, 1.0)
    expected = scale * fit_temperature(logits, labels)
    assert fit_temperature(scale * logits, labels) == pytest.approx(expected, rel=1e-3)


def test_temperature_of_perfect_predictions_is_the_end_of_the_range() -> None:
    labels = np.arange(7)
    assert fit_temperature(np.eye(7), labels) == pytest.approx(calibration.TEMPERATURES[0], rel=1e-3)


def test_probabilities_equal_those_of_torch() -> None:
    logits, _ = drawn(50)
    expected = (torch.from_numpy(logits) / 1.7).softmax(1).numpy()
    np.testing.assert_allclose(calibrated(logits, 1.7), expected, rtol=1e-12)
    huge = calibrated(np.array([[1e5, 0.0], [-1e5, 0.0]]), 0.05)
    np.testing.assert_array_equal(huge, [[1, 0], [0, 1]])


def test_threshold_is_the_lowest_that_is_accurate_enough() -> None:
    logits, labels = drawn(600)
    p = calibrated(np.round(logits), 2.5)  # rounded, so that confidences are equal
    threshold, coverage, accuracy = choose_threshold(p, labels, 0.8)
    confidence, hits = p.max(1), p.argmax(1) == labels

    def accuracy_from(t: float) -> float:
        return float(hits[confidence >= t].mean())

    fitting = [t for t in np.unique(confidence) if (confidence >= t).sum() >= 20 and accuracy_from(t) >= 0.8]
    assert threshold == min(fitting)
    assert coverage == (confidence >= threshold).mean()
    assert accuracy == pytest.approx(accuracy_from(threshold))
    assert 0 < coverage < 1


def test_all_predictions_are_sure_where_all_are_accurate_enough() -> None:
    p = np.full((40, 2), (0.7, 0.3))
    assert choose_threshold(p, np.zeros(40, np.int64)) == (0.7, 1.0, 1.0)


def test_no_prediction_is_sure_where_none_are_accurate_enough() -> None:
    logits, _ = drawn(300)
    wrong = (logits.argmax(1) + 1) % 7
    assert choose_threshold(calibrated(logits, 1.0), wrong) == (NEVER_SURE, 0.0, 0.0)


def test_a_few_lucky_predictions_are_not_enough() -> None:
    confidence = np.linspace(0.9, 0.6, 100)
    labels = np.where(np.arange(100) < 15, 0, 1)  # the 15 most confident are right
    assert choose_threshold(np.stack([confidence, 1 - confidence], 1), labels)[0] == NEVER_SURE


def test_fit_lowers_the_calibration_error() -> None:
    from fer_lightning.metrics.scores import calibration_error
    from fer_lightning.metrics.sums import Sums, calibration_bins

    logits, labels = drawn(4000)
    found = fit(logits[:2000], labels[:2000])

    def error(temperature: float) -> float:
        bins = calibration_bins(calibrated(logits[2000:], temperature), labels[2000:])
        return float(calibration_error(Sums(np.zeros((7, 7)), bins)))

    assert error(found.temperature) < 0.04 < error(1.0) / 3
