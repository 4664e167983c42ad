"""Faces drawn by code: FER-2013's classes and imbalance, with nothing to download.

A face is a set of numbers: the person (head, hair, skin, glasses, ...), the photograph (pose, light, sharpness, noise)
and the expression. Expressions vary in strength and lean towards a neighbouring one, so that classes overlap
as they do in FER-2013 and no network reaches 100 %.

The images are the same bytes everywhere: the only random numbers are PCG64's uniform ones, and every operation is an
elementwise one that IEEE 754 defines to the last bit (+ - * / sqrt, comparisons, min and max in float64). A sine, a
normal deviate, a sum or a matrix product would differ in the last bits from one processor or library to the next.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fer_lightning.data.seeding import seed_sequence
from fer_lightning.data.table import FER_CLASSES, SIDE, SPLITS, FaceTable
from fer_lightning.errors import UserError

Floats = NDArray[np.float64]

FORMAT = 3
"""Increase this whenever the same parameters produce other images, so that cached results are not mistaken for them."""

TRAINING_COUNTS = (3995, 436, 4097, 7215, 4830, 3171, 4965)
"""FER-2013's Training images per class; every split has these proportions."""

MIN_PER_CLASS = 3
CHUNK = 4  # faces drawn at once: from 6 on, malloc hands their arrays back each time, and page faults double the time

EXPRESSION = {
    #          brow   slope   eye   open  width  curve  teeth  nose   fold   lift
    "angry": (-0.11, -0.36, 0.085, 0.035, 0.30, -0.05, 0.50, 0.45, 0.30, 0.00),
    "disgust": (-0.05, -0.08, 0.030, 0.080, 0.30, -0.15, 0.40, 1.00, 1.00, 0.14),
    "fear": (0.09, 0.28, 0.150, 0.090, 0.37, -0.05, 0.50, 0.00, 0.15, 0.00),
    "happy": (0.02, 0.00, 0.075, 0.090, 0.44, 0.15, 0.90, 0.00, 0.70, 0.03),
    "sad": (0.00, 0.34, 0.075, 0.005, 0.28, -0.11, 0.10, 0.00, 0.20, 0.00),
    "surprise": (0.18, 0.05, 0.165, 0.230, 0.25, 0.00, 0.15, 0.00, 0.00, -0.03),
    "neutral": (0.00, 0.00, 0.100, 0.000, 0.32, 0.00, 0.10, 0.00, 0.10, 0.00),
}
"""The shape of a full expression.

In half face widths: how far the brows are raised, how much higher their inner ends are, half the eye opening, the mouth
opening, half the mouth width, how far its corners are raised. In 0–1: how much of an open mouth is teeth, how wrinkled
nose and brow are, how deep the cheek folds. In half face widths again: how far the mouth is raised.
"""

SPREAD = (0.05, 0.12, 0.025, 0.035, 0.05, 0.05, 0.40, 0.25, 0.30, 0.03)
"""Half ranges by which two people differ in the columns of EXPRESSION."""

NEIGHBOURS = {
    "angry": ("disgust", "sad", "neutral"),
    "disgust": ("angry", "sad", "angry"),
    "fear": ("surprise", "sad", "surprise"),
    "happy": ("neutral", "surprise", "neutral"),
    "sad": ("neutral", "fear", "angry"),
    "surprise": ("fear", "happy", "fear"),
    "neutral": ("sad", "angry", "happy"),
}
"""The classes that an expression may resemble."""


@lru_cache(maxsize=1)  # the jobs of a sweep have the same faces
def synthetic(*, n_train: int, n_val: int, n_test: int, seed: int = 0) -> FaceTable:
    """Drawn faces in the splits `train`, `public` (`n_val`) and `private` (`n_test`), so that every protocol works.

    A split depends only on its own size and the seed. Three thousand faces take about a second.

    Raises:
        UserError: a split too small for one face of each class (validation and test may be empty), or a negative seed.
    """
    for key, n, allowed_empty in (("n_train", n_train, False), ("n_val", n_val, True), ("n_test", n_test, True)):
        if n < len(FER_CLASSES) and not (allowed_empty and n == 0):
            raise UserError(f"data.synthetic.{key}={n}: must be at least {len(FER_CLASSES)}, one face of each class")
    if seed < 0:
        raise UserError(f"data.synthetic.seed={seed}: must be 0 or more")

    sizes = {"train": n_train, "public": n_val, "private": n_test}
    drawn = [_draw_split(n, seed, SPLITS.index(name)) for name, n in sizes.items()]
    images, labels = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    images.flags.writeable = labels.flags.writeable = False
    return FaceTable(
        images=images,
        labels=labels,
        split=np.repeat(np.array([SPLITS.index(name) for name in sizes], dtype=np.int8), list(sizes.values())),
        ids=np.array([f"synthetic {name} {i}".encode() for name, n in sizes.items() for i in range(n)]),
        classes=FER_CLASSES,
        source="synthetic",
        fingerprint=hashlib.sha256(f"synthetic {FORMAT} {n_train} {n_val} {n_test} {seed}".encode()).hexdigest(),
    )


def _draw_split(n: int, seed: int, stream: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (n, 48, 48) and labels int64 (n,) in random order."""
    rng = np.random.Generator(np.random.PCG64(seed_sequence("drawn faces", seed, stream)))
    in_order = np.repeat(np.arange(len(FER_CLASSES)), _class_counts(n))
    labels = in_order[np.argsort(rng.random(n), kind="stable")]
    images = np.empty((n, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, n, CHUNK):
        images[start : start + CHUNK] = _draw(labels[start : start + CHUNK], rng)
    return images, labels


def _class_counts(n: int) -> list[int]:
    """`n` divided in the proportions of FER-2013's Training, with at least a few of each class if `n` allows."""
    total = sum(TRAINING_COUNTS)
    counts = [max(n * count // total, min(MIN_PER_CLASS, n // len(FER_CLASSES))) for count in TRAINING_COUNTS]
    counts[TRAINING_COUNTS.index(max(TRAINING_COUNTS))] += n - sum(counts)
    return counts


def _expressions(labels: NDArray[np.int64], draw: _Uniform) -> list[Floats]:
    """The columns of EXPRESSION, each (n, 1), for one face per label."""
    table = np.array([EXPRESSION[name] for name in FER_CLASSES])
    neighbours = np.array([[FER_CLASSES.index(other) for other in NEIGHBOURS[name]] for name in FER_CLASSES])
    own, calm = table[labels], table[FER_CLASSES.index("neutral")]
    other = table[neighbours[labels, draw(0, 3)[:, 0].astype(np.int64)]]
    lean, strength = draw(0.0, 1.0), draw(0.55, 1.2)
    lean = 0.5 * lean * lean
    full = own + lean * (other - own)
    face = calm + strength * (full - calm)
    return [face[:, i, None] + draw(-half, half) for i, half in enumerate(SPREAD)]


class _Uniform:
    """Uniform numbers for `n` faces: `draw(low, high)` is (n, 1)."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.rng, self.n = rng, n

    def __call__(self, low: float, high: float) -> Floats:
        return low + (high - low) * self.rng.random((self.n, 1))

    def chance(self, p: float) -> Floats:
        """1.0 with probability `p`, else 0.0."""
        return (self.rng.random((self.n, 1)) < p).astype(np.float64)


@dataclass(frozen=True)
class _Canvas:
    """Faces being drawn, or a band of rows of them, with the position of each pixel in the face.

    Lengths are in half face widths, from a point between eyes and nose. Shapes are signed distances, negative inside.
    Tones run from 0, black, to 1.

    Attributes:
        tone: (n, rows * 48), painted on in place.
        x_head, x: to the right, from the middle of the head and of the features: a turned head shifts them.
        y: down.
        side: |x|, with which both halves of a face are drawn at once.
        sharpness: (n, 1), one over the width of an edge.
    """

    tone: Floats
    x_head: Floats
    x: Floats
    y: Floats
    side: Floats
    sharpness: Floats

    def paint(self, distance: Floats, tone: Floats, strength: Floats | float = 1.0) -> None:
        """Paint `tone` over the inside of the shape."""
        cover = distance * -self.sharpness
        cover += 0.5
        np.clip(cover, 0.0, 1.0, out=cover)
        cover *= strength
        change = tone - self.tone
        change *= cover
        np.add(self.tone, change, out=self.tone)

    def rows(self, top: int, bottom: int) -> _Canvas:
        """A band of rows, for small features: the rest of the image costs no time."""
        pixels = {
            name: getattr(self, name)[:, top * SIDE : bottom * SIDE] for name in ("tone", "x_head", "x", "y", "side")
        }
        return replace(self, **pixels)


def _draw(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One face for each label, uint8 (n, 48, 48)."""
    draw = _Uniform(rng, len(labels))
    brow, slope, eye, gape, width, curve, teeth, nose, fold, lift = _expressions(labels, draw)

    # Pose: in-plane rotation by the rational parametrisation of the circle, size, shift, and a turn of the head.
    t = draw(-0.12, 0.12)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    radius = draw(21.0, 27.0)  # pixels
    pixel = np.arange(SIDE * SIDE)[None]
    column = (pixel % SIDE - (SIDE - 1) / 2 - draw(-3.0, 3.0)) / radius
    row = (pixel // SIDE - (SIDE - 1) / 2 - draw(-3.0, 3.0)) / radius
    x_head = cos * column + sin * row
    x = x_head - draw(-0.13, 0.13)
    background = draw(0.05, 0.95) + draw(-0.3, 0.3) * column + draw(-0.3, 0.3) * row
    canvas = _Canvas(background, x_head, x, cos * row - sin * column, np.abs(x), radius / draw(1.1, 2.4))

    skin = draw(0.38, 0.82)
    hair = np.minimum(draw(0.03, 0.55), skin - 0.12)
    mouth_y = draw(0.46, 0.56) - lift
    _head(canvas, draw, skin, hair, mouth_y)
    _nose(canvas.rows(8, 44), draw, skin, nose, fold)
    _eyes(canvas.rows(0, 34), draw, skin, hair, brow, slope, eye)
    _mouth(canvas.rows(22, 48), draw, skin, mouth_y, width, curve, gape, teeth)

    # Light from one side, exposure, grain.
    tone = canvas.tone * (1 + draw(-0.35, 0.35) * column + draw(-0.2, 0.25) * row)
    tone = 0.5 + draw(0.65, 1.25) * (tone - 0.5) + draw(-0.12, 0.12)
    tone += draw(0.02, 0.12) * (rng.random(tone.shape) + rng.random(tone.shape) - 1)
    return (np.clip(tone, 0.0, 1.0) * 255 + 0.5).astype(np.uint8).reshape(-1, SIDE, SIDE)


def _head(on: _Canvas, draw: _Uniform, skin: Floats, hair: Floats, mouth_y: Floats) -> None:
    """Neck, hair, the head itself, and for some a beard."""
    width, height, jaw = draw(0.80, 0.94), draw(0.98, 1.10), draw(0.0, 0.2)
    on.paint(np.maximum(np.abs(on.x_head) - draw(0.45, 0.65), 0.6 - on.y), 0.8 * skin)
    volume, length = draw(1.02, 1.25), draw(0.1, 1.2)
    on.paint(np.maximum(_ellipse(on.x_head, on.y + 0.12, width * volume, height * volume), on.y - length), hair)
    head = _ellipse(on.x_head * (1 + jaw * np.maximum(on.y, 0.0)), on.y, width, height)
    on.paint(head, skin * (1.04 - 0.3 * on.x_head * on.x_head))
    hairline = on.y + draw(0.62, 0.95) - draw(-0.3, 0.5) * on.side * on.side
    on.paint(np.maximum(head, hairline), hair)

    lower = on.rows(20, SIDE)
    cheek = 0.45 - 0.5 * lower.side * lower.side - lower.y
    beard = np.maximum(np.maximum(head[:, 20 * SIDE :], cheek), -_ellipse(lower.x, lower.y - mouth_y, 0.38, 0.14))
    lower.paint(beard, hair, draw.chance(0.15) * draw(0.25, 0.75))


def _nose(on: _Canvas, draw: _Uniform, skin: Floats, wrinkled: Floats, fold: Floats) -> None:
    """A shaded flank and nostrils; wrinkles over the bridge and between the brows; folds from nose to mouth."""
    nose_y = draw(0.10, 0.20)
    flank = np.abs(on.x - draw(-0.10, 0.10) * (1 + on.y)) - 0.02
    on.paint(np.maximum(flank, np.abs(on.y - 0.5 * nose_y + 0.1) - 0.18), 0.75 * skin, draw(0.1, 0.6))
    on.paint(_ellipse(on.side - draw(0.07, 0.11), on.y - nose_y, draw(0.04, 0.06), 0.03), 0.4 * skin)
    wrinkled = np.clip(wrinkled, 0.0, 1.0)
    stripes = np.abs(np.abs(on.y - nose_y + 0.12 + 0.4 * on.side) - 0.05) - 0.022
    on.paint(np.maximum(stripes, on.side - 0.15), 0.45 * skin, wrinkled)
    on.paint(np.maximum(np.abs(on.side - 0.05) - 0.018, np.abs(on.y + 0.34) - 0.09), 0.5 * skin, 0.8 * wrinkled)
    crease = np.abs(on.side - 0.20 - 0.55 * (on.y - 0.12)) - 0.02
    on.paint(np.maximum(crease, np.abs(on.y - 0.30) - 0.17), 0.6 * skin, np.clip(fold, 0.0, 1.0))


def _eyes(
    on: _Canvas, draw: _Uniform, skin: Floats, hair: Floats, brow: Floats, slope: Floats, opening: Floats
) -> None:
    """The white between two arcs, iris, upper lid; brows, higher or lower at their inner ends; for some, glasses."""
    eye_x, width, opening = draw(0.33, 0.42), draw(0.14, 0.19), np.maximum(opening, 0.02)
    eye_y = draw(-0.22, -0.14)
    across, down = (on.side - eye_x) / width, on.y - eye_y
    lid = opening * (1 - across * across)
    on.paint(_ellipse(on.side - eye_x, down, 1.5 * width, 0.2), 0.8 * skin, draw(0.0, 0.8))
    white = np.abs(down) - lid
    on.paint(white, np.minimum(skin + 0.25, 0.95))
    gaze = draw(-0.04, 0.04) - np.where(on.x > 0, eye_x, -eye_x)
    on.paint(np.maximum(_ellipse(on.x + gaze, down + draw(-0.01, 0.02), 0.09, 0.09), white), draw(0.02, 0.3))
    on.paint(np.maximum(np.abs(down + lid) - draw(0.015, 0.03), np.abs(across) - 1), 0.35 * skin)

    line = eye_y - draw(0.20, 0.28) - brow - slope * (eye_x - on.side) + draw(0.0, 0.12) * across * across
    band = np.abs(on.y - line - draw(-0.06, 0.06) * on.x) - draw(0.025, 0.06)
    tone = np.minimum(hair + draw(0.0, 0.1), 0.75 * skin)
    on.paint(np.maximum(band, np.abs(across) - draw(1.1, 1.5)), tone, draw(0.6, 1.0))

    rim = np.abs(_ellipse(on.side - eye_x, down - 0.02, draw(0.24, 0.29), draw(0.18, 0.25))) - 0.02
    bridge = np.maximum(np.abs(down) - 0.02, on.side - 0.12)
    on.paint(np.minimum(rim, bridge), draw(0.0, 0.4), draw.chance(0.15))


def _mouth(
    on: _Canvas,
    draw: _Uniform,
    skin: Floats,
    mouth_y: Floats,
    width: Floats,
    curve: Floats,
    gape: Floats,
    teeth: Floats,
) -> None:
    """Lips, the dark line or opening between them, and teeth at its top."""
    gape = np.maximum(gape, 0.0)
    along = on.x / width
    half = 0.5 * gape * np.maximum(1 - along * along, 0.0)
    beside = np.abs(on.x) - width
    middle = on.y - mouth_y - curve * (0.35 - along * along) - 0.3 * gape
    lips = np.abs(middle) - half * (1 + draw(0.03, 0.08) / np.maximum(0.5 * gape, 0.02))
    on.paint(np.maximum(lips, beside), skin * draw(0.6, 0.9))
    on.paint(np.maximum(np.abs(middle) - half - 0.018, beside), skin * draw(0.15, 0.4))
    visible = np.clip(teeth, 0.0, 1.0) * gape
    row = np.maximum(np.abs(middle) - half + 0.01, middle + 0.5 * gape - visible)
    on.paint(np.maximum(row, beside), np.minimum(skin + 0.3, 0.95), np.minimum(visible / 0.03, 1.0))


def _ellipse(x: Floats, y: Floats, half_width: Floats | float, half_height: Floats | float) -> Floats:
    """The signed distance from an axis-parallel ellipse: nearly exact at the edge, half of it at the centre."""
    x, y = x * (1 / half_width), y * (1 / half_height)
    x *= x
    y *= y
    x += y
    x -= 1
    x *= 0.5 * np.minimum(half_width, half_height)
    return x
