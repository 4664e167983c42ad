"""A run that was interrupted anywhere resumes to the same weights, bit for bit, as one that was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Run
from tests.processes import Command, apart
from tests.resuming import (
    BATCHES,
    SETTINGS,
    assert_same,
    ending,
    outcome,
    resumed,
    table,
    uninterrupted_run,
    without,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    return uninterrupted_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def uninterrupted(finished: Path) -> dict[str, Any]:
    return outcome(finished)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


KILLS = [(batch, name, minutes) for batch in range(1, BATCHES + 1)
         for name, minutes in (("SIGKILL", (10, 1e-6)[batch % 2]), ("SIGTERM", (1e-6, 10)[batch % 2]))]  # fmt: skip
"""Batches, signals, and minutes between checkpoints within an epoch."""
QUICK = KILLS[12:14]


@pytest.mark.parametrize(
    ("batch", "signal", "minutes"),
    [pytest.param(*kill, marks=[] if kill in QUICK else [pytest.mark.slow]) for kill in KILLS],
)
def test_resume_after_a_kill_at_any_batch_is_bitwise_equal(
    batch: int, signal: str, minutes: float, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    end = ending("on_train_batch_start", batch, signal, tmp_path / "once")
    first = apart(tmp_path, *SETTINGS, *end, f"callbacks.last.every_minutes={minutes}", f"hydra.run.dir={run}")
    assert first.code == {"SIGKILL": -9, "SIGTERM": 143}[signal]
    assert not (run / "metrics.json").exists()
    if signal == "SIGTERM":
        assert f"resume={run}" in first.err
    elif minutes < 1:  # after each batch that is neither logged nor the last one, and after each epoch
        saved = [step for step in range(1, batch) if step % 3 or step % 4 == 0]
        last = run / "checkpoints/last.ckpt"
        assert last.exists() == bool(saved)
        assert not saved or torch.load(last, weights_only=True)["global_step"] == saved[-1]
    second = apart(tmp_path, *resumed(run))
    assert second.code == 0, second.err
    assert_same(run, uninterrupted)


BETWEEN = [
    ("on_train_batch_end", BATCHES),
    ("on_validation_batch_end", 1),
    ("on_validation_batch_end", 5),
    ("on_validation_batch_end", 9),
    ("on_train_epoch_start", 2),
    ("on_train_epoch_end", 1),
    ("on_train_epoch_end", 3),
    ("on_test_start", 1),
    ("on_test_start", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "n"), BETWEEN)
def test_sigterm_between_batches_ends_a_run_with_a_checkpoint(
    hook: str, n: int, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    first = apart(tmp_path, *SETTINGS, *ending(hook, n, "SIGTERM", tmp_path / "once"), f"hydra.run.dir={run}")
    assert first.code == 143, first.err
    second = apart(tmp_path, *resumed(run))
    assert second.code == 0, second.err
    assert_same(run, uninterrupted)


def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """In a batch, in validation, at the last batch of an epoch, and between the scoring of two parts."""
    run = tmp_path / "run"
    interruptions = [
        ("on_train_batch_start", 2, "SIGUSR1", 138),
        ("on_validation_batch_end", 1, "SIGTERM", 143),  # of the first epoch, resumed in its third batch
        ("on_train_batch_end", 4, "SIGTERM", 143),  # of the second epoch
        ("on_test_start", 2, "SIGTERM", 143),
    ]
    ends = [ending(hook, n, name, tmp_path / f"once {i}") for i, (hook, n, name, _) in enumerate(interruptions)]
    command = [*SETTINGS, *(override for end in ends for override in end), f"hydra.run.dir={run}"]
    for i, (*_, code) in enumerate(interruptions):
        ended = apart(tmp_path, *command)
        assert ended.code == code, ended.err
        assert [(tmp_path / f"once {j}").exists() for j in range(len(ends))] == [j <= i for j in range(len(ends))]
        command = resumed(run)
    last = apart(tmp_path, *command)
    assert last.code == 0, last.err
    assert_same(run, uninterrupted)


def test_a_validation_is_finished_before_the_run_ends(tmp_path: Path) -> None:
    """The checkpoint holds its scores; it is not repeated."""
    run, end = tmp_path / "run", ending("on_validation_batch_end", 1, "SIGTERM", tmp_path / "once")
    ended = apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={run}")
    assert ended.code == 143, ended.err
    (row,) = table(run / "metrics.csv")
    assert float(row["val/f1_macro"]) >= 0
    assert (run / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("schedule=plateau", "schedule.patience=0", "trainer.max_epochs=4"),
        ("optimizer=adamw", "optimizer.lr=1e-3", "schedule=onecycle", "precision=bf16"),
        ("callbacks=ema", "callbacks.ema.decay=0.5", "optimizer=muon", "optimizer.lr=0.01"),
        ("trainer.accumulate_grad_batches=2", "imbalance=weighted"),
        ("callbacks.early_stopping.patience=1", "monitor.metric=val/loss", "monitor.mode=min", "optimizer.lr=0.5"),
        ("imbalance=sampler", "imbalance.loss.weights=effective", "imbalance.loss.after=0.5"),
        ("imbalance=remix", "imbalance.resample=null"),
        ("trainer.limit_train_batches=3", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4"),
        ("trainer.max_steps=10", "trainer.max_epochs=8"),
    ],
    ids=[
        "plateau",
        "onecycle, bf16",
        "EMA, Muon",
        "accumulated gradients",
        "early stopping",
        "deferred weights",
        "remix",
        "no validation in some epochs",
        "a number of steps",
    ],
)
def test_resume_restores_everything_that_has_a_state(settings: tuple[str, ...], tmp_path: Path) -> None:
    base = without(SETTINGS, *(setting.partition("=")[0] for setting in settings))
    assert apart(tmp_path / "out", *base, *settings, f"hydra.run.dir={tmp_path}/whole").code == 0
    reference = outcome(tmp_path / "whole")
    for hook, n in (("on_train_batch_start", 2), ("on_train_batch_start", 6), ("on_validation_batch_end", 4)):
        run = tmp_path / f"{hook}{n}"
        end = ending(hook, n, "SIGTERM", tmp_path / f"once {hook}{n}")
        first = apart(tmp_path / "out", *base, *settings, *end, f"hydra.run.dir={run}")
        assert first.code == 143, first.err
        second = apart(tmp_path / "out", *resumed(run))
        assert second.code == 0, second.err
        assert_same(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", ["default", "ema"])
def test_resume_in_and_before_the_second_stage_is_bitwise_equal(callbacks: str, tmp_path: Path) -> None:
    settings = (*SETTINGS, "imbalance=two_stage", "imbalance.retrain_after=0.5", f"callbacks={callbacks}")
    assert apart(tmp_path / "out", *settings, f"hydra.run.dir={tmp_path}/whole").code == 0
    reference = outcome(tmp_path / "whole")
    # The second stage is the third epoch: at its start, in its second batch, and after its last one.
    for hook, n in (("on_train_epoch_start", 3), ("on_train_batch_start", 10), ("on_train_epoch_end", 3)):
        run, once = tmp_path / f"{hook}{n}", tmp_path / f"once {hook}{n}"
        signal = "SIGKILL" if hook == "on_train_epoch_start" else "SIGTERM"
        first = apart(tmp_path / "out", *settings, *ending(hook, n, signal, once), f"hydra.run.dir={run}")
        assert first.code == {"SIGKILL": -9, "SIGTERM": 143}[signal], first.err
        second = apart(tmp_path / "out", *resumed(run))
        assert second.code == 0, second.err
        assert_same(run, reference)


@pytest.mark.parametrize("every", [1, 2])
def test_resume_of_a_run_with_a_number_of_steps_goes_on_after_the_last_epoch(every: int, tmp_path: Path) -> None:
    steps = ["trainer.max_steps=10", "trainer.max_epochs=8", f"trainer.check_val_every_n_epoch={every}"]
    settings = without(SETTINGS, "trainer.max_epochs")
    assert apart(tmp_path / "out", *settings, *steps, f"hydra.run.dir={tmp_path}/whole").code == 0
    run, end = tmp_path / "run", ending("on_train_batch_start", 9, "SIGKILL", tmp_path / "once")
    assert apart(tmp_path / "out", *settings, *steps, *end, f"hydra.run.dir={run}").code == -9
    second = apart(tmp_path / "out", *resumed(run))
    assert second.code == 0, second.err
    assert_same(run, outcome(tmp_path / "whole"))


def test_training_goes_on_from_its_own_weights_without_their_average(tmp_path: Path) -> None:
    run, end = tmp_path / "run", ending("on_train_epoch_start", 3, "SIGKILL", tmp_path / "once")
    average = ("callbacks=ema", "callbacks.ema.decay=0.9")
    assert apart(tmp_path / "out", *SETTINGS, *average, *end, f"hydra.run.dir={run}").code == -9
    own = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["current_model_state"]
    still = ("callbacks.ema=null", "trainer.limit_train_batches=1", "trainer.gradient_clip_val=1e-12")
    second = apart(tmp_path / "out", *resumed(run, *still, "allow_changes=true"))
    assert second.code == 0, second.err
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, weights in own.items():
        if name.endswith("weight") and weights.ndim > 1:
            torch.testing.assert_close(state[name], weights, rtol=0, atol=2e-3)


def test_resume_keeps_the_decision_to_stop_early(tmp_path: Path) -> None:
    """Ended after the decision and before the test: not one epoch more."""
    stops = ["callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=9", "trainer.max_epochs=9"]
    settings = without(SETTINGS, "trainer.max_epochs", "callbacks.early_stopping.patience")
    run, end = tmp_path / "run", ending("on_test_start", 1, "SIGTERM", tmp_path / "once")
    assert apart(tmp_path / "out", *settings, *stops, *end, f"hydra.run.dir={run}").code == 143
    assert apart(tmp_path / "out", *resumed(run)).code == 0
    assert json.loads((run / "metrics.json").read_text())["train/epochs"] == 2
    assert len(table(run / "metrics.csv")) == 2


@pytest.mark.parametrize("change", ["callbacks.early_stopping.patience=9", "callbacks.early_stopping=null"])
def test_a_run_that_was_stopped_early_can_be_continued(change: str, tmp_path: Path, train: Callable[..., Run]) -> None:
    # Disgust, with three training images, is never recognised: the score does not improve.
    stops = ("callbacks.early_stopping.patience=1", "monitor.metric=val/recall/disgust", "trainer.max_epochs=4")
    base = without(SETTINGS, "trainer.max_epochs", "callbacks.early_stopping.patience")
    run = train(*base, *stops, folder=tmp_path / "run")
    assert run.code == 0, run.err
    assert len(table(run.folder / "metrics.csv")) == 2
    again = train(*resumed(run.folder, change, "allow_changes=true"), folder=run.folder)
    assert again.code == 0, again.err
    assert len(table(run.folder / "metrics.csv")) == 4


def test_a_run_that_was_out_of_time_can_be_continued(tmp_path: Path, train: Callable[..., Run]) -> None:
    base = without(SETTINGS, "trainer.max_epochs", "callbacks.early_stopping.patience")
    endless = ("trainer.max_epochs=9999", "callbacks.early_stopping=null", "trainer.max_time=00:00:00:01")
    run = train(*base, *endless, folder=tmp_path / "run")
    assert run.code == 0, run.err
    epochs = len(table(run.folder / "metrics.csv"))
    (run.folder / "metrics.json").unlink()  # as if it had been killed in scoring
    assert train(*resumed(run.folder), folder=run.folder).code == 0
    assert len(table(run.folder / "metrics.csv")) == epochs
    longer = train(*resumed(run.folder, "trainer.max_time=00:00:00:03", "allow_changes=true"), folder=run.folder)
    assert longer.code == 0, longer.err
    assert len(table(run.folder / "metrics.csv")) > epochs


def test_ctrl_c_ends_a_run_with_exit_code_130(tmp_path: Path) -> None:
    end = ending("on_train_batch_start", 2, "SIGINT", tmp_path / "once")
    ended = apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 130
    assert "SIGINT" in ended.err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert "Traceback" not in ended.err


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    run, end = tmp_path / "run", ending("on_train_batch_start", 2, "SIGKILL", tmp_path / "once")
    later = ending("on_train_epoch_end", 1, "SIGTERM", tmp_path / "later")
    assert apart(tmp_path, *SETTINGS, *end, *later, f"hydra.run.dir={run}").code == -9
    assert list((run / "checkpoints").iterdir()) == []
    assert apart(tmp_path, *resumed(run)).code == 143
    assert [row["step"] for row in table(run / "metrics.csv")] == ["4"]


def test_resume_of_a_finished_run_does_nothing(copy: Path, train: Callable[..., Run]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != "train.log"}
    run = train(*resumed(copy), folder=copy)
    assert run.code == 0
    assert "is finished" in run.out
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != "train.log"}
    assert {p: t for p, t in after.items() if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}


def test_resume_with_another_config_is_refused_with_the_differences(copy: Path, train: Callable[..., Run]) -> None:
    run = train(*resumed(copy, "trainer.max_epochs=4", "seed=5"), folder=copy)
    assert run.code == 1
    assert "trainer.max_epochs: 3 -> 4" in run.err
    assert "seed: 0 -> 5" in run.err
    assert "allow_changes=true" in run.err
    assert run.err.count("\n") == 1


def test_resume_with_another_config_is_accepted_with_allow_changes(copy: Path, train: Callable[..., Run]) -> None:
    run = train(*resumed(copy, "trainer.max_epochs=4", "allow_changes=true"), folder=copy)
    assert run.code == 0, run.err
    assert json.loads((copy / "metrics.json").read_text())["train/epochs"] == 4
    assert [row["epoch"] for row in table(copy / "metrics.csv")] == ["0", "1", "2", "3"]


def test_a_failed_resume_leaves_the_run_as_it_was(copy: Path, train: Callable[..., Run]) -> None:
    names = ("config.yaml", "metrics.json", ".hydra/overrides.yaml", "metrics.csv", "checkpoints/best.ckpt")
    before = {name: (copy / name).read_bytes() for name in names}
    run = train(*resumed(copy, "data.classes=[happy,nobody]", "allow_changes=true"), folder=copy)
    assert run.code == 1 and "nobody" in run.err
    assert {name: (copy / name).read_bytes() for name in names} == before
    assert "is finished" in train(*resumed(copy), folder=copy).out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lr=0.5", "optimizer.lr: 0.02 -> 0.5: a run that has begun keeps the settings of its optimizer"),
        ("schedule=plateau", "a run that has begun keeps"),
        ("finetune.backbone_lr_factor=0.5", "finetune.backbone_lr_factor: 1.0 -> 0.5: a run that has begun keeps"),
        ("imbalance=two_stage", "imbalance.retrain_after: null -> 0.75: a run that has begun keeps"),
        ("imbalance.head={scale: 3}", "its weights do not fit the configured network"),
    ],
)
def test_changes_that_a_checkpoint_does_not_allow_leave_the_run_as_it_was(
    change: str, message: str, copy: Path, train: Callable[..., Run]
) -> None:
    files = [path for path in copy.rglob("*") if path.is_file() and path.name != "train.log"]
    before = {path: path.read_bytes() for path in files}
    extra = ["imbalance=ldam_drw"] if "head" in change else []
    run = train(*resumed(copy, *extra, *([] if extra else [change]), "allow_changes=true"), folder=copy)
    assert run.code == 1 and message in run.err and run.err.count("\n") == 1, run.err
    assert {path: path.read_bytes() for path in files} == before


def test_accepted_changes_last(copy: Path, train: Callable[..., Run], tmp_path: Path) -> None:
    """A run that is resumed with changes and interrupted is resumed with them by the command that it prints."""
    end = ending("on_train_batch_start", 2, "SIGTERM", tmp_path / "once")
    first = apart(tmp_path, *resumed(copy, "trainer.max_epochs=4", "allow_changes=true", *end))
    assert first.code == 143, first.err
    second = train(*resumed(copy), folder=copy)
    assert second.code == 0, second.err
    assert [row["epoch"] for row in table(copy / "metrics.csv")] == ["0", "1", "2", "3"]


def test_resume_of_a_moved_run_is_bitwise_equal(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    end = ending("on_train_batch_start", 6, "SIGTERM", tmp_path / "once")
    assert apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={tmp_path}/run").code == 143
    shutil.move(tmp_path / "run", tmp_path / "else where")
    second = apart(tmp_path, *resumed(tmp_path / "else where"))
    assert second.code == 0, second.err
    assert_same(tmp_path / "else where", uninterrupted)
    assert not (tmp_path / "run").exists()


def test_resume_through_a_link_keeps_the_best_score(
    tmp_path: Path, finished: Path, uninterrupted: dict[str, Any]
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    run, end = tmp_path / "link" / "run", ending("on_train_batch_start", 10, "SIGTERM", tmp_path / "once")
    assert apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={run}").code == 143
    again = apart(tmp_path, *resumed(run))
    assert again.code == 0 and "dirpath has changed" not in again.err, again.err
    assert_same(run, uninterrupted)
    scores = [best_score(folder) for folder in (run, finished)]
    assert scores[0] == scores[1] is not None


def best_score(run: Path) -> float | None:
    states = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"].values()
    (score,) = (state["best_model_score"] for state in states if "best_model_score" in state)
    return None if score is None else float(score)


def test_resume_keeps_relative_paths(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    ends = [
        *ending("on_train_batch_start", 2, "SIGTERM", tmp_path / "once"),
        *ending("on_train_epoch_end", 1, "SIGTERM", tmp_path / "later"),
    ]
    assert apart(home, *SETTINGS, *ends, "hydra.run.dir=run").code == 143
    assert apart(tmp_path, *resumed(Path("../home/run")), cwd=elsewhere).code == 143
    assert (home / "run" / "metrics.csv").is_file()
    assert list(elsewhere.iterdir()) == []


def test_resume_of_a_folder_without_a_run_is_refused(tmp_path: Path, train: Callable[..., Run]) -> None:
    run = train(*resumed(tmp_path / "nothing"))
    assert run.code == 1
    assert "there is no run and no sweep" in run.err
    assert not (tmp_path / "nothing").exists()


def test_resume_falls_back_from_a_damaged_checkpoint(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    run, end = tmp_path / "run", ending("on_train_batch_start", 10, "SIGTERM", tmp_path / "once")
    assert apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={run}").code == 143
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    last.write_bytes(content)
    second = apart(tmp_path, *resumed(run))
    assert second.code == 0, second.err
    assert "last.ckpt is damaged" in second.out + second.err
    assert "from previous.ckpt" in second.out
    assert_same(run, uninterrupted)


def test_a_second_process_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    long = [*without(SETTINGS, "trainer.max_epochs"), "trainer.max_epochs=500"]
    command = Command(tmp_path, *long, f"hydra.run.dir={tmp_path}/run")
    command.wait_for(lambda: "epoch 1/" in command.out)
    second = apart(tmp_path / "second", *resumed(tmp_path / "run"))
    assert second.code == 1
    assert "another process is busy with this run" in second.err
    command.process.terminate()
    assert command.wait().code == 143
