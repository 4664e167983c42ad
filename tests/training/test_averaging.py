"""The moving average of the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from fer_lightning.training.callbacks import EMA
from tests.conftest import SMALL, Run
from tests.processes import apart


def test_average_follows_the_warmed_up_decay() -> None:
    callback = EMA(decay=0.9)
    average, expected = torch.zeros(3), 0.0
    for t in range(1, 200):
        callback.average([average], [torch.full((3,), float(t))], torch.tensor(t))
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * t
    assert average.tolist() == pytest.approx([expected] * 3, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        EMA(decay=decay)


def test_a_short_run_forgets_its_initial_weights(train: Callable[..., Run]) -> None:
    """After eight steps, a constant decay of 0.999 would leave 99 % of them."""
    settings = (*SMALL, "callbacks=ema", "optimizer.lr=0.05", "schedule=constant")
    run = train(*settings)
    assert run.code == 0, run.err
    last = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    still = train(*settings[:-2], "optimizer.lr=1e-12", "schedule=constant")
    first = torch.load(still.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    name = "network.backbone.layers.0.weight"
    average, current = last["state_dict"][name], last["current_model_state"][name]
    moved = (average - first[name]).norm() / (current - first[name]).norm()
    assert moved > 0.5


@pytest.mark.slow
@pytest.mark.ddp
def test_what_two_ranks_validate_is_what_is_saved(tmp_path: Path) -> None:
    settings = ("callbacks=ema", "trainer.devices=2", "trainer.max_epochs=3")
    run = apart(tmp_path, *SMALL, *settings, f"hydra.run.dir={tmp_path}/run")
    assert run.code == 0, run.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())  # scored from best.ckpt
    row = pd.read_csv(tmp_path / "run/metrics.csv").iloc[int(metrics["train/best_epoch"])]
    for name in ("val/loss", "val/ece", "val/f1_macro"):
        assert row[name] == pytest.approx(metrics[name], abs=1e-6), name
