"""Streams of random numbers."""

from __future__ import annotations

import itertools

import numpy as np

from fer_lightning.data.seeding import stream_rng, stream_seed


def test_streams_and_positions_never_share_numbers() -> None:
    positions = [(), (0,), (0, 0), (0, 0, 0), (1,), (0, 1), (1, 0), (2**32,), (0, 2**32 - 1)]
    seeds = [stream_seed(name, *p) for name, p in itertools.product(("order", "augmentation", "labels"), positions)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_is_the_same_each_time() -> None:
    assert stream_seed("order", 0, 3) == stream_seed("order", 0, 3) == 8237141900806425062
    assert np.array_equal(stream_rng("order", 0, 3).random(5), stream_rng("order", 0, 3).random(5))
