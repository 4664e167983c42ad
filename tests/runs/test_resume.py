"""A run that was ended at any place goes on to the same weights, bit for bit, as one that never was."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, Run
from tests.processes import Command, apart

SETTINGS = (
    *TINY,
    "model._target_=tests.interruptions.SmallNetwork",
    "trainer.max_epochs=3",
    "data.eval_batch_size=16",
    "model.dropout=0.2",
    "trainer.log_every_n_steps=3",
    "logger=csv",
    "callbacks.early_stopping.patience=50",
)
BATCHES = 12
"""4 an epoch."""


def ending(hook: str, n: int, signal: str, once: Path, rank: int = 0) -> list[str]:
    """Overrides that end the run at a place."""
    arguments = {"_target_": "tests.interruptions.EndAt", "hook": hook, "n": n, "signal": signal, "once": once}
    return [f"+callbacks.end.{name}={value}" for name, value in {**arguments, "rank": rank}.items()]


def kept(run: Path) -> dict[str, Any]:
    """Everything of a run that must be as if it had never been interrupted."""
    rows, logged = table(run / "metrics.csv"), table(run / "csv" / "metrics.csv")
    metrics = json.loads((run / "metrics.json").read_text())
    for measured in (*rows, metrics):
        for name in ("train/images_per_second", "train/seconds"):
            measured.pop(name, None)
    found: dict[str, Any] = {"metrics.csv": rows, "csv logger": logged, "metrics.json": metrics}
    for name in ("best", "last"):
        state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "training_sums"):
            found |= {f"{name}: {key}": value for key, value in flat(state[part], part).items()}
    found["predictions"] = (run / "report" / "predictions.csv").read_bytes()
    return found


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def flat(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        return {
            name: (
                str(value.dtype),
                tuple(value.shape),
                value.contiguous().flatten().view(torch.uint8).numpy().tobytes(),
            )
        }
    if isinstance(value, dict):
        return {key: item for k, v in value.items() for key, item in flat(v, f"{name}.{k}").items()}
    if isinstance(value, list | tuple):
        return {key: item for i, v in enumerate(value) for key, item in flat(v, f"{name}.{i}").items()}
    return {name: value}


def assert_same(run: Path, reference: dict[str, Any]) -> None:
    found = kept(run)
    assert found.keys() == reference.keys()
    assert [name for name in reference if found[name] != reference[name]] == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that was never ended."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = apart(folder / "out", *SETTINGS, f"hydra.run.dir={folder}/run")
    assert ended.code == 0, ended.err
    return kept(folder / "run")


def kills(n: int) -> list[tuple[int, str, float]]:
    """Batches from 1, signals, and minutes between checkpoints within an epoch; the same ones each time."""
    chosen = random.Random(2013)
    return [(chosen.randint(1, BATCHES), ("SIGKILL", "SIGTERM")[i % 2], (10, 1e-6)[i // 2 % 2]) for i in range(n)]


@pytest.mark.parametrize(
    ("batch", "signal", "minutes"),
    [pytest.param(*kill, marks=[] if i < 4 else [pytest.mark.slow]) for i, kill in enumerate(kills(20))],
)
def test_killed_at_a_random_batch(
    batch: int, signal: str, minutes: float, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    end = ending("on_train_batch_start", batch, signal, tmp_path / "once")
    first = apart(tmp_path, *SETTINGS, *end, f"callbacks.last.every_minutes={minutes}", f"hydra.run.dir={run}")
    assert first.code == {"SIGKILL": -9, "SIGTERM": 143}[signal]
    assert not (run / "metrics.json").exists()
    if signal == "SIGTERM":
        assert f"resume={run}" in first.err
    second = apart(tmp_path, f"resume={run}")
    assert second.code == 0, second.err
    assert_same(run, uninterrupted)


@pytest.mark.parametrize(
    ("hook", "n"),
    [
        ("on_train_batch_end", BATCHES),
        pytest.param("on_validation_batch_end", 1, marks=pytest.mark.slow),
        ("on_validation_batch_end", 5),
        pytest.param("on_validation_batch_end", 9, marks=pytest.mark.slow),
        pytest.param("on_train_epoch_start", 2, marks=pytest.mark.slow),
        ("on_train_epoch_end", 1),
        pytest.param("on_train_epoch_end", 3, marks=pytest.mark.slow),
        pytest.param("on_test_start", 1, marks=pytest.mark.slow),
        ("on_test_start", 2),
    ],
)
def test_told_to_end_between_batches(hook: str, n: int, tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    run = tmp_path / "run"
    first = apart(tmp_path, *SETTINGS, *ending(hook, n, "SIGTERM", tmp_path / "once"), f"hydra.run.dir={run}")
    assert first.code == 143, first.err
    second = apart(tmp_path, f"resume={run}")
    assert second.code == 0, second.err
    assert_same(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("schedule=plateau", "schedule.patience=0", "trainer.max_epochs=4"),
        ("optimizer=adamw", "optimizer.lr=1e-3", "schedule=onecycle", "precision=bf16"),
        ("callbacks=ema", "callbacks.ema.decay=0.5"),
        ("trainer.accumulate_grad_batches=2", "imbalance=weighted"),
        ("callbacks.early_stopping.patience=1", "monitor.metric=val/loss", "monitor.mode=min", "optimizer.lr=0.5"),
        ("imbalance=two_stage", "imbalance.retrain_after=0.5"),
        ("imbalance=sampler", "imbalance.loss.weights=effective", "imbalance.loss.after=0.5"),
        ("imbalance=remix", "imbalance.resample=null"),
        ("trainer.limit_train_batches=3", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4"),
    ],
    ids=[
        "plateau",
        "onecycle, bf16",
        "EMA",
        "accumulated gradients",
        "early stopping",
        "two stages",
        "deferred weights",
        "remix",
        "no validation in some epochs",
    ],
)
def test_everything_that_has_a_state_goes_on(settings: tuple[str, ...], tmp_path: Path) -> None:
    base = [s for s in SETTINGS if s.partition("=")[0] not in {o.partition("=")[0] for o in settings}]
    assert apart(tmp_path / "out", *base, *settings, f"hydra.run.dir={tmp_path}/whole").code == 0
    reference = kept(tmp_path / "whole")
    for hook, n in (("on_train_batch_start", 2), ("on_train_batch_start", 6), ("on_validation_batch_end", 4)):
        run = tmp_path / f"{hook}{n}"
        end = ending(hook, n, "SIGTERM", tmp_path / f"once {hook}{n}")
        first = apart(tmp_path / "out", *base, *settings, *end, f"hydra.run.dir={run}")
        assert first.code == 143, first.err
        second = apart(tmp_path / "out", f"resume={run}")
        assert second.code == 0, second.err
        assert_same(run, reference)


def test_an_early_stop_that_was_decided_is_kept(tmp_path: Path) -> None:
    """Ended after the decision and before the scores: not one epoch more."""
    stops = ["callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=9", "trainer.max_epochs=9"]
    settings = [s for s in SETTINGS if "max_epochs" not in s and "patience" not in s]
    run, end = tmp_path / "run", ending("on_test_start", 1, "SIGTERM", tmp_path / "once")
    assert apart(tmp_path / "out", *settings, *stops, *end, f"hydra.run.dir={run}").code == 143
    assert apart(tmp_path / "out", f"resume={run}").code == 0
    assert json.loads((run / "metrics.json").read_text())["train/epochs"] == 2
    assert len(table(run / "metrics.csv")) == 2


def test_ctrl_c_ends_with_its_own_code(tmp_path: Path) -> None:
    end = ending("on_train_batch_start", 2, "SIGINT", tmp_path / "once")
    ended = apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 130
    assert "SIGINT" in ended.err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert "Traceback" not in ended.err


def test_a_run_that_was_ended_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    end = ending("on_train_batch_start", 2, "SIGKILL", tmp_path / "once")
    assert apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={tmp_path}/run").code == -9
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert apart(tmp_path, f"resume={tmp_path}/run").code == 0


@pytest.fixture
def ended_run(train: Callable[..., Run]) -> Path:
    """A finished run with its checkpoints."""
    return train(*TINY).folder


def test_a_finished_run_says_so_and_does_nothing(ended_run: Path, train: Callable[..., Run]) -> None:
    before = {path: path.stat().st_mtime_ns for path in ended_run.rglob("*") if path.name != "train.log"}
    run = train(f"resume={ended_run}", folder=ended_run)
    assert run.code == 0
    assert "is finished" in run.out
    after = {path: path.stat().st_mtime_ns for path in ended_run.rglob("*") if path.name != "train.log"}
    assert {p for p in before if p.is_file() and before[p] != after[p]} == set()


def test_another_config_is_refused_with_the_difference(ended_run: Path, train: Callable[..., Run]) -> None:
    run = train(f"resume={ended_run}", "trainer.max_epochs=3", "seed=5", folder=ended_run)
    assert run.code == 1
    assert "trainer.max_epochs: 2 -> 3" in run.err
    assert "seed: 0 -> 5" in run.err
    assert "allow_changes=true" in run.err
    assert run.err.count("\n") == 1


def test_another_config_is_taken_when_asked_for(ended_run: Path, train: Callable[..., Run]) -> None:
    run = train(f"resume={ended_run}", "trainer.max_epochs=3", "allow_changes=true", folder=ended_run)
    assert run.code == 0, run.err
    assert json.loads((ended_run / "metrics.json").read_text())["train/epochs"] == 3
    assert [row["epoch"] for row in table(ended_run / "metrics.csv")] == ["0", "1", "2"]


def test_a_folder_that_was_moved_goes_on(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    end = ending("on_train_batch_start", 6, "SIGTERM", tmp_path / "once")
    assert apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={tmp_path}/run").code == 143
    shutil.move(tmp_path / "run", tmp_path / "else where")
    second = apart(tmp_path, f"resume={tmp_path}/else where")
    assert second.code == 0, second.err
    assert_same(tmp_path / "else where", uninterrupted)
    assert not (tmp_path / "run").exists()


def test_relative_paths_mean_what_they_meant(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    end = ending("on_train_batch_start", 2, "SIGTERM", tmp_path / "once")
    assert apart(home, *SETTINGS, *end, "hydra.run.dir=run").code == 143
    assert apart(tmp_path, "resume=../home/run", cwd=elsewhere).code == 0
    assert (home / "run" / "metrics.json").is_file()
    assert list(elsewhere.iterdir()) == []


def test_what_is_no_run_is_named(tmp_path: Path, train: Callable[..., Run]) -> None:
    run = train(f"resume={tmp_path}/nothing")
    assert run.code == 1
    assert "there is no run and no sweep" in run.err
    assert not (tmp_path / "nothing").exists()


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    run, end = tmp_path / "run", ending("on_train_batch_start", 10, "SIGTERM", tmp_path / "once")
    assert apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={run}").code == 143
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    last.write_bytes(content)
    second = apart(tmp_path, f"resume={run}")
    assert second.code == 0, second.err
    assert "last.ckpt is damaged" in second.out + second.err
    assert "gone on with from previous.ckpt" in second.out
    assert_same(run, uninterrupted)


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    long = [s if "max_epochs" not in s else "trainer.max_epochs=500" for s in SETTINGS]
    command = Command(tmp_path, *long, f"hydra.run.dir={tmp_path}/run")
    command.wait_for(lambda: "epoch 1/" in command.out)
    second = apart(tmp_path / "second", f"resume={tmp_path}/run")
    assert second.code == 1
    assert "another process is busy with this run" in second.err
    command.process.terminate()
    assert command.wait().code == 143
