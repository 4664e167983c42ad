"""Every imbalance strategy through the training command."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fer_lightning.app import CONF
from fer_lightning.inference.evaluate import evaluate
from fer_lightning.training.imbalance import epoch_at
from tests.conftest import SMALL, TINY, Run
from tests.interruptions import RecordBatches, batches
from tests.processes import apart

TRAINING = {"angry": 19, "disgust": 3, "fear": 19, "happy": 37, "sad": 23, "surprise": 15, "neutral": 24}
HEAD = {"network.head.weight", "network.head.bias"}


def states(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The weights after each epoch."""
    paths = sorted(folder.glob("epoch=*.ckpt"))
    return [torch.load(path, weights_only=True)["state_dict"] for path in paths]


def keep_all(folder: Path) -> str:
    target = "lightning.pytorch.callbacks.ModelCheckpoint"
    return f"+callbacks.all={{_target_: {target}, save_top_k: -1, filename: '{{epoch}}', dirpath: {folder}}}"


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


STRATEGIES = sorted(path.stem for path in (CONF / "imbalance").glob("*.yaml"))
ELSEWHERE = ("none", "balanced", "weighted", "balanced_weighted", "posthoc_adjusted", "two_stage")
"""Trained by other tests; with sqrt_sampler and logit_adjusted nothing is new."""


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(s, marks=[pytest.mark.slow] if s in (*ELSEWHERE, "sqrt_sampler", "logit_adjusted") else [])
        for s in STRATEGIES
    ],
)
def test_every_strategy_trains(strategy: str, train: Callable[..., Run]) -> None:
    needs_head = strategy == "ldam_drw"
    run = train(*(TINY if needs_head else SMALL), f"imbalance={strategy}", "trainer.limit_train_batches=2")
    assert run.code == 0, run.err
    assert f"training {strategy}: " in run.out


@pytest.mark.parametrize(
    ("strategy", "resampled", "from_epoch"),
    [("weighted", {}, 0), ("balanced_weighted", {"disgust": 6, "surprise": 1.2, "happy": 0.8}, 0), ("ldam_drw", {}, 3)],
)
def test_weights_of_classes_are_in_force(
    strategy: str, resampled: dict[str, float], from_epoch: int, train: Callable[..., Run], tmp_path: Path
) -> None:
    record = RecordBatches.override(tmp_path / "record")
    extra = ("imbalance.loss.after=0.75",) if from_epoch else ()
    needs_head = strategy == "ldam_drw"
    run = train(*(TINY if needs_head else SMALL), f"imbalance={strategy}", *extra, "trainer.max_epochs=4", record)
    assert run.code == 0, run.err
    counts = np.array([round(n * resampled.get(name, 1)) for name, n in TRAINING.items()])
    for batch in batches(tmp_path / "record"):
        assert batch["in_force"] == (batch["epoch"] >= from_epoch)
        weights = np.array(batch["weight"])
        assert weights.mean() == pytest.approx(1)
        if strategy != "ldam_drw":
            np.testing.assert_allclose(weights * counts, (weights * counts).mean(), rtol=1e-5)
        else:  # of effective numbers
            assert weights.argmax() == 1 and weights.argmin() == 3


@pytest.mark.parametrize(("strategy", "power"), [("none", 1.0), ("sqrt_sampler", 0.5), ("sampler", 0.0)])
def test_training_draws_classes_as_the_strategy_says(
    strategy: str, power: float, train: Callable[..., Run], tmp_path: Path
) -> None:
    record = RecordBatches.override(tmp_path / "record")
    run = train(*SMALL, f"imbalance={strategy}", "trainer.max_epochs=12", "callbacks=none", record)
    assert run.code == 0, run.err
    labels = [label for batch in batches(tmp_path / "record") for label in batch["labels"]]
    shares = np.bincount(labels, minlength=7) / len(labels)
    expected = np.array(list(TRAINING.values())) ** power
    expected /= expected.sum()
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 * 0.75 / len(labels))  # n is 1,536


@pytest.mark.parametrize(("settings", "mixes"), [(["imbalance=remix"], True), (["mix=cutmix"], True), ([], False)])
def test_training_mixes_images_if_asked_to(
    settings: list[str], mixes: bool, train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(*SMALL, *settings, "trainer.max_epochs=1", RecordBatches.override(tmp_path / "record"))
    assert run.code == 0, run.err
    assert any(batch["mixed"] for batch in batches(tmp_path / "record")) == mixes


def test_rates_follow_the_schedule_in_every_stage(train: Callable[..., Run], tmp_path: Path) -> None:
    record = RecordBatches.override(tmp_path / "record")
    schedule = ("schedule=cosine", "schedule.warmup=0", "schedule.final=0.1", "optimizer.lr=0.02")
    stages = ("imbalance=two_stage", "imbalance.retrain_after=0.5", "trainer.max_epochs=4")
    run = train(*(s for s in SMALL if not s.startswith("optimizer")), *schedule, *stages, record)
    assert run.code == 0, run.err
    rates = [batch["rates"][0] for batch in batches(tmp_path / "record")]
    # A warm-up has one step at least; then half a cosine over the other seven of a stage's eight.
    after = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(7) / 7)) / 2
    assert rates == pytest.approx(0.02 * np.tile([1, *after], 2))


def test_rates_decay_from_layer_to_layer(train: Callable[..., Run], tmp_path: Path) -> None:
    record = RecordBatches.override(tmp_path / "record")
    settings = (
        "finetune.layer_decay=0.5",
        "finetune.backbone_lr_factor=0.1",
        "schedule=constant",
        "trainer.max_epochs=1",
    )
    run = train(*TINY, *settings, record)
    assert run.code == 0, run.err
    rates = sorted(set(batches(tmp_path / "record")[0]["rates"]), reverse=True)
    assert len(rates) >= 5 and rates[0] == 0.02
    assert rates[1:] == pytest.approx([0.1 * 0.02 * 0.5**i for i in range(1, len(rates))])


def test_second_stage_trains_the_head_only(train: Callable[..., Run], tmp_path: Path) -> None:
    settings = (
        "imbalance=two_stage",
        "imbalance.retrain_after=0.5",
        "trainer.max_epochs=4",
        keep_all(tmp_path / "all"),
    )
    run = train(*SMALL, *settings)
    assert run.code == 0, run.err
    epochs = states(tmp_path / "all")
    steps = [changed(before, after) for before, after in pairwise(epochs)]
    assert len(steps[0]) > 10  # the first stage trains the whole network
    assert steps[2] == HEAD
    # The second stage starts from the best checkpoint of the first one, with a new head.
    best = torch.load(run.folder / "checkpoints/first_stage/best.ckpt", weights_only=True)["state_dict"]
    assert changed(best, epochs[2]) == HEAD
    before, after = (epoch["network.head.weight"].flatten() for epoch in epochs[1:3])
    assert torch.corrcoef(torch.stack([before, after]))[0, 1].abs() < 0.5
    assert json.loads((run.folder / "metrics.json").read_text())["train/best_epoch"] >= 2


@pytest.mark.slow
@pytest.mark.ddp
def test_second_stage_trains_the_head_only_on_two_devices(tmp_path: Path) -> None:
    settings = ("imbalance=two_stage", "imbalance.retrain_after=0.5", "trainer.max_epochs=4", "trainer.devices=2")
    run = apart(tmp_path, *TINY, *settings, keep_all(tmp_path / "all"), f"hydra.run.dir={tmp_path}/run")
    assert run.code == 0, run.err
    assert not run.err
    epochs = states(tmp_path / "all")
    assert changed(epochs[2], epochs[3]) == HEAD
    best = torch.load(tmp_path / "run/checkpoints/first_stage/best.ckpt", weights_only=True)["state_dict"]
    assert changed(best, epochs[3]) == HEAD


@pytest.mark.parametrize(
    "target", ["fer_lightning.training.callbacks.PatientStopping", "lightning.pytorch.callbacks.EarlyStopping"]
)
def test_early_stopping_does_not_shorten_the_first_stage(target: str, train: Callable[..., Run]) -> None:
    run = train(
        *SMALL, "imbalance=two_stage", "imbalance.retrain_after=0.6", "trainer.max_epochs=5", "optimizer.lr=1e-9",
        "callbacks.early_stopping.patience=0", f"callbacks.early_stopping._target_={target}",
    )  # fmt: skip
    assert run.code == 0, run.err
    # No epoch is better than the first.
    assert len(pd.read_csv(run.folder / "metrics.csv")) == 5


@pytest.mark.parametrize("settings", [[], ["trainer.limit_val_batches=0"]])
def test_two_stages_train_without_callbacks(settings: list[str], train: Callable[..., Run]) -> None:
    run = train(*SMALL, "imbalance=two_stage", "imbalance.retrain_after=0.5", "callbacks=none", *settings)
    assert run.code == 0, run.err
    assert pd.read_csv(run.folder / "metrics.csv")["epoch"].tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["callbacks=ema", "schedule=plateau"])
def test_two_stages_combine_with_averages_and_plateaus(other: str, train: Callable[..., Run]) -> None:
    run = train(*SMALL, "imbalance=two_stage", "imbalance.retrain_after=0.5", "trainer.max_epochs=4", other)
    assert run.code == 0, run.err
    assert run.err == ""
    assert pd.read_csv(run.folder / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "deferred",
    [("imbalance=ldam_drw", "imbalance.loss.after=0.75"), ("imbalance=sampler", "imbalance.sampler.after=0.7")],
)
def test_best_checkpoint_is_chosen_after_deferral(train: Callable[..., Run], deferred: list[str]) -> None:
    settings = ("trainer.max_epochs=4", "optimizer.lr=1e-9", "callbacks.early_stopping.patience=0")
    run = train(*SMALL, *deferred, *settings)
    assert run.code == 0, run.err
    assert json.loads((run.folder / "metrics.json").read_text())["train/best_epoch"] == 3  # no epoch is better
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        *("best.ckpt", "last.ckpt", "previous.ckpt")
    ]


def test_posthoc_adjustment_lowers_each_logit_by_its_class_prior(train: Callable[..., Run]) -> None:
    plain, adjusted = (train(*SMALL, "trainer.max_epochs=1", f"imbalance.posthoc_tau={tau}") for tau in (0, 0.7))
    before, after = (
        pd.read_csv(run.folder / "report/predictions.csv").filter(regex="^p_") for run in (plain, adjusted)
    )
    share = np.array([TRAINING.get(name.removeprefix("p_"), 0) for name in before], float)
    expected = before.to_numpy() / (share / share.sum()) ** 0.7
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(after.to_numpy(), expected, atol=2e-5)
    metrics = json.loads((adjusted.folder / "metrics.json").read_text())
    assert evaluate(adjusted.folder, trust=True)["test/f1_macro"] == metrics["test/f1_macro"]
    # The same adjustment of the run that was trained without.
    again = evaluate(plain.folder, posthoc_tau=0.7, trust=True)
    assert again["test/f1_macro"] == metrics["test/f1_macro"] and again["posthoc_tau"] == 0.7
    assert "calibration/temperature" in again and "calibration/coverage" not in again  # that is of other predictions
    saved = pd.read_csv(plain.folder / "evaluation/test-tau0.7/report/predictions.csv").filter(regex="^p_")
    np.testing.assert_allclose(saved.to_numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["imbalance=ldam_drw", "mix=mixup"], "one true class"),
        (["imbalance=ldam_drw", "imbalance.loss.label_smoothing=0.1"], "label_smoothing"),
        (["imbalance=ldam_drw", "imbalance.head=null", "imbalance.loss.scale=30"], "imbalance.head.scale=30"),
        (["imbalance=remix", "mix=cutmix"], "mix=none"),
        (["mix=mixup", "data.batch_size=33"], "pairs"),
        (["imbalance=two_stage", "trainer.max_epochs=1"], "leaves no epoch"),
        (["imbalance=two_stage", "trainer.max_epochs=4", "trainer.max_time=00:01:00:00"], "trainer.max_time"),
        (["imbalance=two_stage", "trainer.max_epochs=5", "trainer.check_val_every_n_epoch=3"], "no validation follows"),
        (
            ["imbalance=ldam_drw", "trainer.max_epochs=5", "trainer.check_val_every_n_epoch=2"],
            "imbalance.loss.after=0.8",
        ),
        (["imbalance=ldam_drw", "imbalance.head.scale=-1"], "imbalance.head"),
        (["imbalance=ldam_drw", "trainer.max_steps=3"], "trainer.max_steps"),
        (["imbalance=sampler", "imbalance.sampler.q=3"], "q is a fraction"),
        (["imbalance=focal", "imbalance.loss.gamma=-1"], "gamma"),
    ],
)
def test_contradicting_settings_are_refused(settings: list[str], said: str, train: Callable[..., Run]) -> None:
    run = train(*TINY, *settings)
    assert run.code == 1
    assert run.err.startswith("error: ") and said in run.err and run.err.count("\n") == 1
    assert "epoch 1" not in run.out


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("strategy", ["weighted", "focal", "balanced_softmax", "two_stage"])
@pytest.mark.slow
def test_strategies_combine_with_mixing_and_smoothing(strategy: str, mix: str, train: Callable[..., Run]) -> None:
    run = train(*TINY, f"imbalance={strategy}", f"mix={mix}", "imbalance.loss.label_smoothing=0.1")
    assert run.code == 0, run.err


@pytest.mark.parametrize(
    ("after", "epochs", "first"),
    [(0.0, 5, 0), (0.8, 10, 8), (0.7, 10, 7), (0.75, 4, 3), (0.5, 3, 2), (0.9, 3, 2), (0.5, 1, 0)],
)
def test_epoch_at_a_fraction(after: float, epochs: int, first: int) -> None:
    assert epoch_at(after, epochs) == first
