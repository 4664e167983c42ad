"""Tracks: which faces of successive frames are the same, and what their expression is over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FLOOR = 1e-6
"""Probabilities are raised to it before the logarithm, so that one frame cannot rule out a class for good."""


@dataclass
class _Track:
    id: int
    seen: float
    box: list[float]
    log_probabilities: list[float]


class Tracker:
    """Joins the faces of successive frames to tracks and smooths their probabilities.

    A face continues the track whose last box overlaps it: boxes and tracks are assigned one to one such that the sum of
    their intersections over union is largest (as in Bewley et al., "Simple online and realtime tracking", ICIP 2016,
    without its motion model; overlap alone suffices at high frame rates: Bochinski et al., "High-speed
    tracking-by-detection without using image information", AVSS 2017). Faces that move by more than half their width
    between two frames get a new track, so frames should be at most about 0.2 s apart.

    The log-probabilities of a track are averaged exponentially, each frame with the weight 1 − exp(−Δt / time_constant)
    that follows from the time Δt since the last one (Eckner, "Algorithms for unevenly spaced time series: moving
    averages and other rolling operators", 2012), so that the result hardly depends on the frame rate. The mean of
    log-probabilities, normalised, is a logarithmic opinion pool (Genest and Zidek, Statistical Science, 1986).

    Args:
        time_constant: seconds after which a frame's weight has fallen to 1/e; 0 for no smoothing.
        lost_after: seconds without a face after which a track ends; more than the time between two frames.
        min_iou: smallest intersection over union of a face and the track that it continues, in (0, 1].
    """

    def __init__(self, *, time_constant: float = 0.5, lost_after: float = 1.0, min_iou: float = 0.3) -> None:
        if time_constant < 0 or lost_after <= 0 or not 0 < min_iou <= 1:
            raise ValueError("time_constant must be at least 0, lost_after above 0, and min_iou in (0, 1]")
        self.time_constant, self.lost_after, self.min_iou = time_constant, lost_after, min_iou
        self._tracks: list[_Track] = []
        self._next = 1

    def update(
        self, seconds: float, boxes: ArrayLike, probabilities: ArrayLike
    ) -> tuple[list[int], NDArray[np.float64]]:
        """Take the faces of the next frame.

        Args:
            seconds: time of the frame, not before that of the last one.
            boxes: float (N, 4), each x, y, width, height.
            probabilities: float (N, C).

        Returns:
            The tracks' ids, counted from 1, and the smoothed probabilities (N, C), in the order of the faces.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        xywh = np.asarray(boxes, dtype=np.float64).reshape(len(p), 4)
        self._tracks = [track for track in self._tracks if seconds - track.seen <= self.lost_after]
        known = self._assign(xywh)
        ids, smoothed = [], np.empty_like(p)
        for face, (box, logs) in enumerate(zip(xywh, np.log(np.maximum(p, FLOOR)), strict=True)):
            track = known.get(face)
            if track is None:
                track = _Track(self._next, seconds, [], logs.tolist())
                self._tracks.append(track)
                self._next += 1
            elif self.time_constant:
                kept = math.exp((track.seen - seconds) / self.time_constant)
                logs = kept * np.array(track.log_probabilities) + (1 - kept) * logs
            track.seen, track.box, track.log_probabilities = seconds, box.tolist(), logs.tolist()
            ids.append(track.id)
            weights = np.exp(logs - logs.max())
            smoothed[face] = weights / weights.sum()
        return ids, smoothed

    def state(self) -> dict[str, Any]:
        """The state for `restore`; it survives JSON exactly."""
        return {"next": self._next, "tracks": [asdict(track) for track in self._tracks]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state` returned."""
        self._next, self._tracks = int(state["next"]), [_Track(**track) for track in state["tracks"]]

    def _assign(self, xywh: NDArray[np.float64]) -> dict[int, _Track]:
        """The track that each face continues, by the face's index."""
        if not self._tracks or not len(xywh):
            return {}
        from scipy.optimize import linear_sum_assignment

        overlap = iou(xywh, [track.box for track in self._tracks])
        overlap[overlap < self.min_iou] = 0
        pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
        return {int(face): self._tracks[track] for face, track in pairs if overlap[face, track]}


def iou(a: NDArray[np.float64], b: Sequence[Sequence[float]] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4), each x, y, width, height."""
    b = np.asarray(b, dtype=np.float64)
    start = np.maximum(a[:, None, :2], b[None, :, :2])
    end = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    common = np.clip(end - start, 0, None).prod(axis=2)
    union = a[:, 2:].prod(axis=1)[:, None] + b[:, 2:].prod(axis=1)[None] - common
    shares: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return shares
