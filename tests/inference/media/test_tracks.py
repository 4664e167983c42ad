"""Faces of successive frames are joined to tracks, whose probabilities are smoothed."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest

from fer_lightning.inference.media.tracks import Tracker, iou

HAPPY, SAD = [0.9, 0.1], [0.1, 0.9]


def test_ids_follow_moving_faces_and_ignore_their_order() -> None:
    tracker = Tracker()
    for step in range(20):
        left, right = [10 + 3 * step, 20, 40, 40], [200 - 3 * step, 25, 40, 40]
        boxes = [left, right] if step % 2 else [right, left]
        ids, _ = tracker.update(step / 10, boxes, [HAPPY, SAD])
        assert ids == ([2, 1] if step % 2 else [1, 2])


def test_faces_that_cross_slowly_keep_one_track_each() -> None:
    tracker = Tracker()
    seen = set()
    for step in range(30):
        boxes = [[5 * step, 0, 40, 40], [150 - 5 * step, 30, 40, 40]]
        ids, _ = tracker.update(step / 25, boxes, [HAPPY, SAD])
        seen.add(tuple(ids))
    assert seen == {(1, 2)}


def test_assignment_has_the_largest_total_overlap() -> None:
    """Greedy matching would give the first face the track that the second one needs."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        before = np.c_[rng.integers(0, 60, (4, 2)), np.full((4, 2), 40)]
        after = before + np.c_[rng.integers(-15, 15, (4, 2)), np.zeros((4, 2), int)]
        overlap = iou(after.astype(float), before)
        overlap[overlap < 0.3] = 0
        best = max(sum(overlap[i, p[i]] for i in range(4)) for p in permutations(range(4)))
        tracker = Tracker()
        tracker.update(0, before, [HAPPY] * 4)
        ids, _ = tracker.update(0.1, after, [HAPPY] * 4)
        assert sum(overlap[i, track - 1] for i, track in enumerate(ids) if track <= 4) == pytest.approx(best)
        assert len(set(ids)) == 4


def test_iou_against_counted_pixels() -> None:
    rng = np.random.default_rng(0)
    boxes = np.c_[rng.integers(0, 20, (6, 2)), rng.integers(1, 20, (6, 2))]
    masks = np.zeros((6, 40, 40), bool)
    for mask, (x, y, width, height) in zip(masks, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
    counted = [[(a & b).sum() / (a | b).sum() for b in masks] for a in masks]
    np.testing.assert_allclose(iou(boxes.astype(float), boxes), counted)


def test_lost_track_is_not_continued() -> None:
    tracker = Tracker(lost_after=1.0)
    box = [[0, 0, 40, 40]]
    assert tracker.update(0, box, [HAPPY])[0] == [1]
    assert tracker.update(0.5, np.empty((0, 4)), np.empty((0, 2)))[0] == []
    assert tracker.update(1.0, box, [HAPPY])[0] == [1]
    assert tracker.update(2.1, box, [HAPPY])[0] == [2]
    assert tracker.update(2.2, [[300, 300, 40, 40]], [HAPPY])[0] == [3]


def test_smoothing_follows_the_formula() -> None:
    tracker = Tracker(time_constant=0.5)
    rng = np.random.default_rng(0)
    times, p = np.cumsum(rng.uniform(0.01, 0.3, 20)), rng.dirichlet([1, 1, 1], 20)
    expected = np.log(p[0])
    for i, (seconds, frame) in enumerate(zip(times, p, strict=True)):
        if i:
            weight = 1 - np.exp(-(seconds - times[i - 1]) / 0.5)
            expected = expected + weight * (np.log(frame) - expected)
        _, smoothed = tracker.update(seconds, [[0, 0, 40, 40]], [frame])
        np.testing.assert_allclose(smoothed[0], np.exp(expected) / np.exp(expected).sum())


def test_smoothing_hardly_depends_on_the_frame_rate() -> None:
    ends = []
    for rate in (5, 10, 30, 100):
        tracker = Tracker(time_constant=0.5)
        for step in range(rate + 1):  # happy for one second after a sad frame
            _, smoothed = tracker.update(step / rate, [[0, 0, 40, 40]], [HAPPY if step else SAD])
        ends.append(smoothed[0, 0])
    np.testing.assert_allclose(ends, ends[0], atol=1e-9)


def test_probability_of_zero_does_not_last() -> None:
    tracker = Tracker(time_constant=0.2)
    tracker.update(0, [[0, 0, 40, 40]], [[0.0, 1.0]])
    for step in range(1, 30):
        _, smoothed = tracker.update(step / 10, [[0, 0, 40, 40]], [HAPPY])
    assert smoothed[0] == pytest.approx(HAPPY, abs=1e-3)


def test_no_smoothing() -> None:
    tracker = Tracker(time_constant=0)
    for p in (HAPPY, SAD, HAPPY):
        assert tracker.update(0, [[0, 0, 40, 40]], [p])[1][0] == pytest.approx(p)


def test_state_survives_json_exactly() -> None:
    rng = np.random.default_rng(0)
    smallest = np.array([0, 0, 90, 90])
    frames = [(i / 7, smallest + rng.uniform(0, 100, (3, 4)), rng.dirichlet(np.ones(7), 3)) for i in range(20)]
    whole, first, second = Tracker(), Tracker(), Tracker()
    expected = [whole.update(*frame) for frame in frames]
    for frame in frames[:9]:
        first.update(*frame)
    second.restore(json.loads(json.dumps(first.state())))
    for frame, (ids, smoothed) in zip(frames[9:], expected[9:], strict=True):
        again = second.update(*frame)
        assert again[0] == ids
        np.testing.assert_array_equal(again[1], smoothed)


@pytest.mark.parametrize("settings", [{"time_constant": -1}, {"lost_after": 0}, {"min_iou": 0}, {"min_iou": 1.1}])
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Tracker(**settings)
