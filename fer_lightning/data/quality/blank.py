"""Blank images, and nearly blank ones such as a notice instead of a photograph."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BLANK = 1.0
"""Standard deviation of the pixel values below which an image is blank."""

FLAT = 0.55
"""Share of flat tiles from which an image is nearly blank.

Of FER-2013's images with the largest shares, the first forty (down to 0.54) are notices such as "this photo is not
available", none a face; below, faces before a white wall are mixed in.
"""

_AT_ONCE = 8192  # images
_TILE = 4  # pixels
_FLAT_SPAN = 8  # grey levels between the darkest and the brightest pixel of a flat tile: JPEG leaves such noise


def is_blank(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether images (N, 48, 48) are blank, bool (N,)."""
    return spread(images) < BLANK


def spread(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Standard deviation of the pixel values of each image (N, 48, 48), float64 (N,)."""
    pixels = images.reshape(len(images), math.prod(images.shape[1:]))
    # In parts, since numpy makes every pixel a float64 first.
    parts = [pixels[start : start + _AT_ONCE].std(1) for start in range(0, len(pixels), _AT_ONCE)]
    return np.concatenate(parts) if parts else np.zeros(0)


def is_near_blank(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether images (N, 48, 48) show hardly more than one tone without being blank, bool (N,)."""
    return (flat_share(images) >= FLAT) & ~is_blank(images)


def flat_share(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Fraction of the tiles of images (N, 48, 48) that have one tone, float64 (N,)."""
    n, height, width = images.shape
    tiles = images.reshape(n, height // _TILE, _TILE, width // _TILE, _TILE)
    return np.asarray((tiles.max((2, 4)) - tiles.min((2, 4)) <= _FLAT_SPAN).mean((1, 2)))
