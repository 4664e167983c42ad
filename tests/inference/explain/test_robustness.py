"""The robustness card, with a classifier whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor

from fer_lightning.inference.explain.perturbations import PERTURBATIONS, Perturbation, brightness
from fer_lightning.inference.explain.robustness import measure, sentences, summary, undisturbed
from fer_lightning.inference.explain.sample import stratified
from fer_lightning.inference.predictor import Predictor


class Bright:
    """Class 1 if the mean is above 100, else class 0."""

    tta = None

    def logits(self, faces: Tensor) -> Tensor:
        above = faces.float().mean((1, 2)) > 100
        return torch.stack([~above, above], 1).float() * 4


@pytest.fixture(scope="module")
def faces() -> NDArray[np.uint8]:
    """Flat faces of grey levels 5, 15, …, 195."""
    return np.broadcast_to(np.arange(5, 200, 10, dtype=np.uint8)[:, None, None], (20, 48, 48))


LABELS = (np.arange(5, 200, 10) > 80).astype(np.int64)  # 85 and 95 are mistaken


@pytest.fixture(scope="module")
def measured(faces: NDArray[np.uint8]) -> tuple[pd.DataFrame, list[str]]:
    """The table and the lines of progress."""
    lines: list[str] = []
    return measure(Predictor([Bright()], ("dark", "bright")), faces, LABELS, report=lines.append), lines


@pytest.fixture
def table(measured: tuple[pd.DataFrame, list[str]]) -> pd.DataFrame:
    return measured[0]


def test_scores_are_those_of_the_perturbed_faces(table: pd.DataFrame) -> None:
    assert undisturbed(table) == pytest.approx(0.9)
    row = table[(table["perturbation"] == "brightness") & (table["level"] == 0.5)].iloc[0]
    predicted = (np.rint(np.arange(5, 200, 10) * 0.5) > 100).astype(int)
    hits = predicted == LABELS
    assert row["accuracy"] == pytest.approx(hits.mean())
    assert row["f1_macro"] == pytest.approx(f1_score(LABELS, predicted, average="macro", zero_division=0))
    before = (np.arange(5, 200, 10) > 100) == LABELS
    change = hits.astype(float) - before
    assert row["change"] == pytest.approx(change.mean())
    assert row["change_high"] - row["change"] == pytest.approx(1.96 * change.std() / 20**0.5)
    assert row["images"] == 20


def test_every_perturbation_has_its_levels_and_the_neutral_one(table: pd.DataFrame) -> None:
    assert list(dict.fromkeys(table["perturbation"])) == [p.name for p in PERTURBATIONS]
    for perturbation in PERTURBATIONS:
        levels = set(perturbation.levels) | ({perturbation.neutral} - {None})
        mine = table[table["perturbation"] == perturbation.name]
        assert mine["level"].tolist() == sorted(levels)
        assert (mine[mine["level"] == perturbation.neutral]["change"] == 0).all()
        if perturbation.name not in ("brightness", "jpeg_quality"):  # flat faces have nothing else to lose
            assert (mine["change"] == 0).all()


def test_summary_starts_with_what_hurts_most(table: pd.DataFrame) -> None:
    first, *others = summary(table)
    assert first.perturbation.name == "brightness"
    assert all(first.change <= other.change for other in others)
    mine = table[table["perturbation"] == "brightness"]
    worst = mine.iloc[mine["change"].argmin()]
    assert (first.worst, first.accuracy, first.change) == (worst["level"], worst["accuracy"], worst["change"])
    assert first.interval == (worst["change_low"], worst["change_high"])


def levels_of(changes: list[float], neutral: float | None) -> tuple[float, float] | None:
    """The range that is tolerated if the accuracy changes so at levels 1, 2, …."""
    levels = np.arange(1.0, len(changes) + 1)
    rows = pd.DataFrame({"perturbation": "x", "level": levels, "images": 50, "change": changes})
    rows[["change_low", "change_high"]] = 0.0
    rows["accuracy"] = rows["f1_macro"] = 0.5 + rows["change"]
    perturbation = Perturbation("x", "x", "", brightness, tuple(v for v in levels if v != neutral), neutral)
    (found,) = summary(rows, [perturbation])
    return found.tolerated


def test_tolerated_levels_are_those_next_to_the_neutral_one() -> None:
    assert levels_of([-0.3, -0.01, 0, 0.01, -0.2, 0], 3) == (2, 4)
    assert levels_of([-0.3, -0.02, 0], 3) is None
    assert levels_of([0, -0.2, -0.01, 0], None) == (3, 4)
    assert levels_of([0, -0.1, 0], None) == (3, 3)
    assert levels_of([0, -0.1], None) is None


def test_sentences_name_the_numbers(table: pd.DataFrame) -> None:
    first, harmful, tolerated = sentences(table)
    assert first == "Accuracy on 20 undisturbed images: 0.900."
    worst = summary(table)[0]
    assert f"brightness at {worst.worst:g} (factor), −{-100 * worst.change:.1f} points" in harmful
    assert "rotation" in tolerated and "brightness" not in tolerated


def test_progress_names_each_perturbation(measured: tuple[pd.DataFrame, list[str]]) -> None:
    _, lines = measured
    assert len(lines) == len(PERTURBATIONS)
    assert lines[0].startswith("robustness 1 of 9: crop scale, accuracy down to 0.900")


@pytest.mark.parametrize("n", [10, 37, 100, 333])
def test_sample_has_the_shares_of_the_classes(n: int) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(4), [600, 300, 95, 5]))
    chosen = stratified(labels, n)
    assert len(chosen) == len(set(chosen.tolist())) == n
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen], minlength=4)
    assert (counts >= 1).all()
    assert np.abs(counts - np.array([600, 300, 95, 5]) * n / 1000).max() <= 1.5
    np.testing.assert_array_equal(chosen, stratified(labels, n))


def test_sample_of_all_images_is_all_of_them() -> None:
    labels = np.array([0, 1, 1])
    assert stratified(labels, 0).tolist() == stratified(labels, 3).tolist() == [0, 1, 2]
