"""Confident learning against the definitions of the paper, written as loops, and on labels with known noise."""

from __future__ import annotations

import numpy as np
import pytest

from fer_lightning.audit.confident import confident_learning


def simulated(n: int, classes: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Given labels, probabilities, and which labels are wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, n)
    wrong = rng.random(n) < noise
    given = np.where(wrong, (true + rng.integers(1, classes, n)) % classes, true)
    logits = rng.normal(0, 1, (n, classes))
    logits[np.arange(n), true] += 4
    probabilities = np.exp(logits)
    return given, probabilities / probabilities.sum(1, keepdims=True), wrong


def naive(labels: np.ndarray, p: np.ndarray) -> list[tuple[int, int]]:
    n, classes = p.shape
    thresholds = []
    for j in range(classes):
        own = [p[x, j] for x in range(n) if labels[x] == j]
        thresholds.append(sum(own) / len(own) if own else float("inf"))
    errors = []
    for x in range(n):
        candidates = [j for j in range(classes) if p[x, j] >= thresholds[j]]
        if candidates:
            best = max(candidates, key=lambda j: p[x, j])
            if best != labels[x] and p[x, best] > p[x, labels[x]]:
                errors.append((x, best))
    return sorted(errors, key=lambda e: p[e[0], labels[e[0]]] - p[e[0], e[1]])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("empty", [False, True])
def test_confident_learning_equals_the_definitions(seed: int, empty: bool) -> None:
    labels, p, _ = simulated(300, 4, 0.2, seed)
    labels[labels == 3] = 0 if empty else 3
    found = confident_learning(labels, p)
    assert list(zip(found.rows.tolist(), found.suggested.tolist(), strict=True)) == naive(labels, p)
    assert (np.diff(found.margins) <= 0).all() and (found.margins > 0).all()


def test_confident_learning_finds_most_wrong_labels() -> None:
    labels, p, wrong = simulated(4000, 7, 0.08, 1)
    found = confident_learning(labels, p)
    assert wrong[found.rows].mean() > 0.9
    assert wrong[found.rows].sum() > 0.7 * wrong.sum()
    assert wrong[found.rows[:100]].all()


def test_perfect_predictions_yield_no_errors() -> None:
    labels = np.arange(30) % 3
    assert len(confident_learning(labels, np.eye(3)[labels]).rows) == 0
