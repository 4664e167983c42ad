"""The moving average of the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as L
import pandas as pd
import pytest
import torch

from fer_lightning.training.callbacks import EMA
from tests.conftest import SMALL, TINY, Run
from tests.processes import apart


class Record(L.Callback):
    """Keeps the weights of the head after each step."""

    heads: ClassVar[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.heads.append(pl_module.get_parameter("network.head.weight").detach().clone())


def test_average_follows_the_warmed_up_decay(train: Callable[..., Run]) -> None:
    Record.heads.clear()
    record = f"+callbacks.record._target_={__name__}.Record"
    run = train(*SMALL, "callbacks=ema", "callbacks.ema.decay=0.55", "trainer.max_epochs=4", record)
    assert run.code == 0, run.err
    expected, *later = Record.heads
    assert len(later) > 12
    for t, head in enumerate(later, 1):
        decay = min(0.55, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * head
    saved = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    torch.testing.assert_close(saved["state_dict"]["network.head.weight"], expected)
    torch.testing.assert_close(saved["current_model_state"]["network.head.weight"], Record.heads[-1], rtol=0, atol=0)
    assert saved["averaging_state"]["n_averaged"] == len(Record.heads)


def test_average_lies_in_memory_as_the_weights_do(train: Callable[..., Run]) -> None:
    """Otherwise each update would convert all of them."""
    run = train(*SMALL, "callbacks=ema", "trainer.channels_last=true", "trainer.max_epochs=1")
    assert run.code == 0, run.err
    saved = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    for state in ("state_dict", "current_model_state"):
        kernel = saved[state]["network.backbone.layers.3.weight"]
        assert kernel.is_contiguous(memory_format=torch.channels_last), state


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


def test_the_average_is_scored_where_no_checkpoint_is_chosen(train: Callable[..., Run]) -> None:
    run = train(*TINY, "callbacks=ema", "callbacks.checkpoint=null")
    assert run.code == 0, run.err
    file = run.folder / "metrics.json"
    metrics = json.loads(file.read_text())
    file.unlink()  # as if the run had been killed while it was scored
    again = train(f"resume={run.folder}")
    assert again.code == 0, again.err
    assert json.loads(file.read_text())["test/loss"] == metrics["test/loss"]


@pytest.mark.slow
@pytest.mark.ddp
def test_what_two_ranks_validate_is_what_is_saved(tmp_path: Path) -> None:
    settings = ("callbacks=ema", "trainer.devices=2", "trainer.max_epochs=3", "augment.batch_norm_images=0")
    run = apart(tmp_path, *SMALL, *settings, f"hydra.run.dir={tmp_path}/run")
    assert run.code == 0, run.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())  # scored from best.ckpt
    row = pd.read_csv(tmp_path / "run/metrics.csv").iloc[int(metrics["train/best_epoch"])]
    for name in ("val/loss", "val/ece", "val/f1_macro"):
        assert row[name] == pytest.approx(metrics[name], abs=1e-6), name
