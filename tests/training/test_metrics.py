"""Scores against scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from fer_lightning.training.metrics import ClassificationScores, Predictions, accuracy_interval, confusion, scores

CLASSES = ["a", "b", "c", "never"]


def example(n: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels with a class that neither occurs nor is predicted."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, 4)) + np.array([0, 0.5, 0.2, -50])
    return torch.from_numpy(logits).float(), torch.from_numpy(rng.integers(0, 3, n))


def test_scores_equal_scikit_learn() -> None:
    logits, labels = example()
    predicted = logits.argmax(1)
    ours = scores(confusion(labels.numpy(), predicted.numpy(), 4), CLASSES)
    options = {"labels": range(4), "zero_division": 0}
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-9)
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted), abs=1e-9)
    for average in ("macro", "weighted"):
        theirs = sk.precision_recall_fscore_support(labels, predicted, average=average, **options)
        for name, value in zip(("precision", "recall", "f1"), theirs, strict=False):
            assert ours[f"{name}_{average}"] == pytest.approx(value, abs=1e-9)
    theirs = sk.precision_recall_fscore_support(labels, predicted, **options)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert [ours[f"{name}/{c}"] for c in CLASSES] == pytest.approx(values.tolist(), abs=1e-9)


def test_confusion_equals_scikit_learn_and_skips_unlabelled() -> None:
    logits, labels = example()
    predicted = logits.argmax(1).numpy()
    with_gaps = labels.numpy().copy()
    with_gaps[::7] = -1
    known = with_gaps >= 0
    expected = sk.confusion_matrix(with_gaps[known], predicted[known], labels=range(4))
    assert (confusion(with_gaps, predicted, 4) == expected).all()


def test_loss_and_ece() -> None:
    logits, labels = example()
    metric = ClassificationScores(CLASSES)
    metric.update(logits, labels)
    result = metric.compute()
    assert result["loss"] == pytest.approx(sk.log_loss(labels, logits.double().softmax(1), labels=range(4)), abs=1e-6)
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=4, n_bins=15)
    assert result["ece"] == pytest.approx(expected.item(), abs=1e-6)


def test_batches_do_not_matter() -> None:
    logits, labels = example()
    whole, parts = ClassificationScores(CLASSES), ClassificationScores(CLASSES)
    whole.update(logits, labels)
    for start in range(0, 500, 33):
        parts.update(logits[start : start + 33], labels[start : start + 33])
    assert parts.compute() == pytest.approx(whole.compute(), abs=1e-9)


def test_unlabelled_images_count_nowhere() -> None:
    logits, labels = example()
    labels[::5] = -1
    some, known = ClassificationScores(CLASSES), ClassificationScores(CLASSES)
    some.update(logits, labels)
    known.update(logits[labels >= 0], labels[labels >= 0])
    assert some.compute() == known.compute()


def test_predictions_come_back_in_table_order() -> None:
    logits, _ = example(9)
    rows = torch.tensor([8, 0, 4, 2, 6, 1, 3, 5, 7])
    kept = Predictions()
    kept.update(rows[:5], logits[:5])
    kept.update(rows[5:], logits[5:])
    got_rows, got = kept.compute()
    assert got_rows.tolist() == list(range(9))
    assert torch.equal(got[4], logits[2])


def test_bootstrap_interval_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.7
    resampled = right[rng.integers(0, 400, (4000, 400))].mean(1)
    low, high = accuracy_interval(int(right.sum()), 400)
    assert (low, high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=0.006)
    assert low < right.mean() < high
    assert accuracy_interval(5, 5) == (1.0, 1.0)
