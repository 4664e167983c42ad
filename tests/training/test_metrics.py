"""Metrics accumulated over an epoch, against those of all images at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fer_lightning.metrics.scores import scores
from fer_lightning.metrics.sums import Sums, calibration_bins, confusion
from fer_lightning.training.metrics import ClassificationScores, Predictions

CLASSES = ["a", "b", "c", "never"]


def example(n: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels with a class that neither occurs nor is predicted, and unlabelled images."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, 4)) + np.array([0, 0.5, 0.2, -50])
    return torch.from_numpy(logits).float(), torch.from_numpy(rng.integers(-1, 3, n))


def test_accumulated_batches_equal_all_images_at_once() -> None:
    logits, labels = example()
    metric = ClassificationScores(CLASSES)
    for start in range(0, 500, 33):
        metric.update(logits[start : start + 33], labels[start : start + 33])
    p, y = logits.double().softmax(1), labels.numpy()
    losses = -p[labels >= 0, labels[labels >= 0]].log()
    sums = Sums(confusion(y, p.argmax(1).numpy(), 4), calibration_bins(p.numpy(), y), losses.sum().item())
    assert metric.compute() == pytest.approx(scores(sums, CLASSES), abs=1e-9)


def test_unlabelled_images_do_not_count() -> None:
    logits, labels = example()
    some, known = ClassificationScores(CLASSES), ClassificationScores(CLASSES)
    some.update(logits, labels)
    known.update(logits[labels >= 0], labels[labels >= 0])
    assert some.compute() == known.compute()


def test_reset_starts_from_zero() -> None:
    logits, labels = example()
    metric = ClassificationScores(CLASSES)
    metric.update(logits, labels)
    expected = metric.compute()
    metric.reset()
    metric.update(logits, labels)
    assert metric.compute() == expected


def test_predictions_are_returned_in_table_order() -> None:
    logits, _ = example(9)
    rows = torch.tensor([8, 0, 4, 2, 6, 1, 3, 5, 7])
    predictions = Predictions()
    predictions.update(rows[:5], logits[:5])
    predictions.update(rows[5:], logits[5:])
    sorted_rows, sorted_logits = predictions.compute()
    assert sorted_rows.tolist() == list(range(9))
    assert torch.equal(sorted_logits[4], logits[2])
