"""Seeds of named streams of random numbers."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_sequence(stream: str, *position: int) -> np.random.SeedSequence:
    """The entropy at one position of a named stream.

    Seeds made of numbers alone collide between streams: numpy pads (0, 3) with zeros, so that it equals (0, 3, 0), and
    the order of epoch 3 would be drawn from the same numbers as the augmentation of its first batch.

    Args:
        stream: what is drawn.
        position: whole numbers from 0, such as seed, epoch and batch.
    """
    name = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "big")
    return np.random.SeedSequence([name, len(position), *position])


def stream_rng(stream: str, *position: int) -> np.random.Generator:
    """A generator for one position of a named stream."""
    return np.random.default_rng(seed_sequence(stream, *position))


def stream_seed(stream: str, *position: int) -> int:
    """A seed of 63 bits, for generators of other libraries, for one position of a named stream."""
    return int(seed_sequence(stream, *position).generate_state(1, np.uint64)[0] >> np.uint64(1))
