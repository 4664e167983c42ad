"""Scores against scikit-learn and torchmetrics."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from fer_lightning.metrics.scores import CLASS_METRICS, METRICS, TESTED, by_name, scores
from fer_lightning.metrics.sums import ECE_BINS, Sums, accuracy_interval, calibration_bins, confusion

CLASSES = ["a", "b", "c", "never"]


def example(n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels with a class that neither occurs nor is predicted."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, 4)) + np.array([0, 0.5, 0.2, -50])
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), rng.integers(0, 3, n)


def sums(probabilities: np.ndarray, labels: np.ndarray) -> Sums:
    counts = confusion(labels, probabilities.argmax(1), 4)
    known = labels >= 0
    losses = -np.log(probabilities[known, labels[known]])
    return Sums(counts, calibration_bins(probabilities, labels), losses.sum())


def test_scores_equal_scikit_learn() -> None:
    p, labels = example()
    predicted = p.argmax(1)
    ours = scores(sums(p, labels), CLASSES)
    options = {"labels": range(4), "zero_division": 0}
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-9)
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted), abs=1e-9)
    assert ours["loss"] == pytest.approx(sk.log_loss(labels, p, labels=range(4)), abs=1e-9)
    for average in ("macro", "weighted"):
        theirs = sk.precision_recall_fscore_support(labels, predicted, average=average, **options)
        for name, value in zip(("precision", "recall", "f1"), theirs, strict=False):
            assert ours[f"{name}_{average}"] == pytest.approx(value, abs=1e-9)
    theirs = sk.precision_recall_fscore_support(labels, predicted, **options)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert [ours[f"{name}/{c}"] for c in CLASSES] == pytest.approx(values.tolist(), abs=1e-9)


def test_calibration_error_equals_torchmetrics() -> None:
    p, labels = example()
    expected = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), num_classes=4, n_bins=ECE_BINS)
    assert scores(sums(p, labels), CLASSES)["ece"] == pytest.approx(expected.item(), abs=1e-6)


def test_confusion_equals_scikit_learn_and_skips_unlabelled() -> None:
    p, labels = example()
    predicted = p.argmax(1)
    labels[::7] = -1
    known = labels >= 0
    expected = sk.confusion_matrix(labels[known], predicted[known], labels=range(4))
    assert (confusion(labels, predicted, 4) == expected).all()


def test_unlabelled_images_do_not_count() -> None:
    p, labels = example()
    labels[::5] = -1
    assert scores(sums(p, labels), CLASSES) == scores(sums(p[labels >= 0], labels[labels >= 0]), CLASSES)


def test_no_images_score_zero() -> None:
    values = scores(sums(np.zeros((0, 4)), np.zeros(0, dtype=np.int64)), CLASSES)
    assert set(values.values()) == {0.0}


def test_tested_metrics_broadcast_over_many_confusion_matrices() -> None:
    matrices = np.random.default_rng(0).integers(0, 50, (5, 3, 4, 4))
    matrices[0, 0, 1] = 0
    for metric in (*TESTED, *CLASS_METRICS):
        one_by_one = [[metric.compute(Sums(matrix)) for matrix in row] for row in matrices]
        np.testing.assert_allclose(metric.compute(Sums(matrices)), one_by_one, rtol=1e-12)


def test_names_are_those_of_the_scores_and_titles_are_unique() -> None:
    p, labels = example()
    assert list(by_name(CLASSES)) == list(scores(sums(p, labels), CLASSES))
    titles = [metric.title for metric in (*METRICS, *CLASS_METRICS) if metric.title]
    assert len(set(titles)) == len(titles)
    phrases = {metric.name: metric.phrase for metric in (*METRICS, *CLASS_METRICS)}
    assert (phrases["f1_macro"], phrases["f1"], phrases["balanced_accuracy"]) == ("macro-F1", "F1", "balanced accuracy")


@pytest.mark.parametrize(("hits", "n"), [(280, 400), (0, 7), (5, 5), (1, 1), (2_467, 3_589)])
def test_accuracy_interval_equals_that_of_statsmodels(hits: int, n: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    assert accuracy_interval(hits, n) == pytest.approx(proportion_confint(hits, n, method="wilson"), abs=1e-12)


@pytest.mark.parametrize("module", ["metrics.scores", "report.figures", "comparison.write", "audit.write"])
def test_scores_figures_comparison_and_audit_do_not_import_torch(module: str) -> None:
    code = f"import sys, fer_lightning.{module}; sys.exit('torch' in sys.modules or 'statsmodels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
