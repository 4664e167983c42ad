"""Sweeps: every rank of a job runs its values; failed jobs are reported; finished ones are not repeated."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fer_lightning import app
from fer_lightning.app import CONF
from fer_lightning.config.resolve import resolve
from fer_lightning.config.validation import check
from tests.conftest import TINY
from tests.processes import REPOSITORY, Command, apart, processes_of
from tests.resuming import ending, resumed, without

SMALL = ("-m", *TINY, "model._target_=tests.interruptions.SmallNetwork")


def jobs(sweep: Path) -> dict[str, Path]:
    """The folders of a sweep's finished jobs, by job number."""
    return {path.parent.name: path.parent for path in sorted(sweep.rglob("metrics.json"))}


def settings(job: Path) -> Any:
    return OmegaConf.load(job / "config.yaml")


def test_a_sweep_trains_every_combination_and_reports_failed_jobs(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    choices = ["imbalance=none,weighted", "data.batch_size=32,1"]
    ended = apart(tmp_path, *without(SMALL, "data.batch_size"), *choices, f"hydra.sweep.dir={sweep}")
    assert ended.code == 1
    assert {name: settings(job).imbalance.name for name, job in jobs(sweep).items()} == {"0": "none", "2": "weighted"}
    # Both failures are reported at once, and again in the summary.
    assert ended.err.count("data.batch_size=1: batch norm needs at least 2 images") == 2 * 2
    assert "job 1 failed (" in ended.err
    assert "job 3 failed (" in ended.err
    assert "2 of 4 jobs finished" in ended.out
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("sweep", "jobs"), [("imbalance", 14 * 3), ("cleaning", 4 * 3)])
def test_every_option_of_a_study_is_valid(sweep: str, jobs: int) -> None:
    app.register()
    source = ["data.path=fer2013.csv", "data.votes=fer2013new.csv"]
    source += ["callbacks=none", "logger=none"]  # callbacks and loggers need a run folder
    with initialize_config_dir(str(CONF), version_base="1.3"):
        study: Any = compose("config", [f"sweep={sweep}", *source], return_hydra_config=True)
        params = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in study.hydra.sweeper.params.items()])
        values = {param.key_or_group: list(param.sweep_string_iterator()) for param in params}
        for override in [f"{key}={value}" for key, choices in values.items() for value in choices]:
            check(resolve(compose("config", [f"sweep={sweep}", *source, override])))
    assert math.prod(len(set(chosen)) for chosen in values.values()) == jobs


@pytest.mark.parametrize("strategy", sorted(path.stem for path in (CONF / "knobs").glob("*.yaml")))
def test_knobs_are_settings_of_their_strategy(strategy: str) -> None:
    app.register()
    knobs: Any = OmegaConf.load(CONF / f"knobs/{strategy}.yaml")
    overrides = [f"{key}={re.findall('[0-9.]+', value)[-1]}" for key, value in knobs.items()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = [f"imbalance={strategy}", "data=synthetic", "callbacks=none", "logger=none"]
        before, after = (compose("config", [*chosen, *more]) for more in ([], overrides))
        tuned: Any = compose("config", ["sweep=optuna", f"knobs={strategy}", *chosen], return_hydra_config=True)
    assert before != after and overrides
    check(resolve(after))
    assert set(knobs) < set(tuned.hydra.sweeper.params)


def test_an_interrupted_sweep_resumes_without_repeating_finished_jobs(tmp_path: Path) -> None:
    """Killed in its second job, then resumed and ended by SIGTERM, which ends the sweep and not only the job."""
    sweep = tmp_path / "sweep"
    ends = [  # of job n, the n-th call
        *ending("on_train_epoch_end", "${seed}", "SIGKILL", tmp_path / "killed"),
        *ending("on_test_start", "${seed}", "SIGTERM", tmp_path / "ended"),
    ]
    small = [*without(SMALL, "trainer.max_epochs"), "trainer.max_epochs=1", "seed=0,1,2"]
    assert apart(tmp_path, *small, *ends, f"hydra.sweep.dir={sweep}").code == -9
    assert sorted(jobs(sweep)) == ["0"]
    written = (sweep / "0" / "metrics.json").stat().st_mtime_ns
    second = apart(tmp_path, *resumed(sweep))
    assert second.code == 143, second.err
    assert not (sweep / "2").exists()
    third = apart(tmp_path, *resumed(sweep))
    assert third.code == 0, third.err
    assert (sweep / "0" / "metrics.json").stat().st_mtime_ns == written
    assert [settings(job).seed for job in jobs(sweep).values()] == [0, 1, 2]
    assert "3 of 3 jobs finished" in third.out


def test_a_sweep_resumed_with_a_wrong_command_says_so_and_can_still_be_resumed(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    job = sweep / "0"
    job.mkdir(parents=True)
    (job / "train.log").touch()  # of a job that did not finish
    (job / "failure.txt").touch()  # which a full disk kept empty
    started = "hydra: {overrides: {task: ['imbalance=none,weighted']}}\n"
    (sweep / "multirun.yaml").write_text(started)
    ended = apart(tmp_path, *SMALL, "imbalance=none,fokal", f"hydra.sweep.dir={sweep}")
    assert ended.code == 1
    assert "0: did not finish" in ended.err
    assert "error: imbalance=fokal" in ended.err.splitlines()[-1] and "focal" in ended.err.splitlines()[-1], ended.err
    assert (sweep / "multirun.yaml").read_text() == started


@pytest.mark.ddp
def test_every_rank_of_a_sweep_runs_the_saved_config_of_its_job(tmp_path: Path) -> None:
    """Jobs on one and on two devices; the seed is the time, another one whenever a command line is read."""
    sweep = tmp_path / "sweep"
    record = {"_target_": "tests.interruptions.RecordSettings", "folder": "${hydra:runtime.output_dir}"}
    callback = [f"+callbacks.record.{key}={value}" for key, value in record.items()]
    choices = ["trainer.devices=1,2", "imbalance=weighted", "seed=${now:1%f}", f"hydra.sweep.dir={sweep}"]
    ended = apart(tmp_path, *SMALL, *callback, *choices)
    assert ended.code == 0, ended.err
    logs = {name: sorted(p.name for p in job.glob("rank*.log")) for name, job in jobs(sweep).items()}
    assert logs == {"0": [], "1": ["rank0.log", "rank1.log"]}
    for name, ranks in (("0", 1), ("1", 2)):
        recorded = [json.loads(path.read_text()) for path in sorted((sweep / name).glob("settings*"))]
        assert len(recorded) == ranks
        saved: Any = OmegaConf.to_container(settings(sweep / name))
        assert all(one == recorded[0] for one in recorded)
        assert {key: recorded[0][key] for key in ("seed", "optimizer", "monitor")} == {
            key: saved[key] for key in ("seed", "optimizer", "monitor")
        }


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("devices", [1, 2])
def test_optuna_receives_the_score_of_its_own_trial(devices: int, tmp_path: Path) -> None:
    """Every trial's ranks run the trial's values, and the sweeper gets the score of the best checkpoint."""
    pytest.importorskip("optuna")
    sweep = tmp_path / "sweep"
    small = without(SMALL, "optimizer.lr")
    options = ["sweep=optuna", "hydra.sweeper.n_trials=2", f"trainer.devices={devices}", f"hydra.sweep.dir={sweep}"]
    record = {"_target_": "tests.interruptions.RecordSettings", "folder": "${hydra:runtime.output_dir}"}
    ended = apart(tmp_path, *small, *options, *(f"+callbacks.record.{key}={value}" for key, value in record.items()))
    assert ended.code == 0, ended.err
    found = jobs(sweep)
    for job in found.values():
        recorded = [json.loads(path.read_text()) for path in sorted(job.glob("settings*"))]
        assert len(recorded) == devices and all(one == recorded[0] for one in recorded)
        assert recorded[0]["optimizer"]["lr"] == settings(job).optimizer.lr
    assert sorted(found) == ["0", "1"]
    rates = {settings(job).optimizer.lr for job in found.values()}
    assert len(rates) == 2
    scores = {name: json.loads((job / "metrics.json").read_text())["val/f1_macro"] for name, job in found.items()}
    best = OmegaConf.load(sweep / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(scores.values()))
    assert best.best_params["optimizer.lr"] in rates


def test_an_optuna_sweep_goes_on_after_a_failed_job_and_is_resumed(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    sweep = tmp_path / "sweep"
    small = [*without(SMALL[1:], "data.batch_size", "trainer.max_epochs"), "trainer.max_epochs=1"]
    options = ["sweep=optuna", "hydra.sweeper.n_trials=3", "data.batch_size=choice(1,32)", f"hydra.sweep.dir={sweep}"]
    first = apart(tmp_path, *small, *options)
    assert first.code == 1
    succeeded = {name: settings(job) for name, job in jobs(sweep).items()}
    assert 0 < len(succeeded) < 3
    assert f"{len(succeeded)} of 3 jobs finished" in first.out
    assert "data.batch_size=1: batch norm needs at least 2 images" in first.err
    scores = [json.loads((job / "metrics.json").read_text())["val/f1_macro"] for job in jobs(sweep).values()]
    assert OmegaConf.load(sweep / "optimization_results.yaml").best_value == pytest.approx(max(scores))
    (again, *_) = jobs(sweep).values()
    (again / "metrics.json").unlink()
    second = apart(tmp_path, *resumed(sweep))
    assert second.code == 1
    assert {name: settings(job) for name, job in jobs(sweep).items()} == succeeded
    # One of its jobs alone is not another sweep.
    one = apart(tmp_path, *resumed(again))
    assert one.code == 0, one.err
    assert f"{again} is finished" in one.out
    assert [path.name for path in sweep.parent.iterdir() if path.is_dir()] == ["sweep"]


@pytest.mark.slow
def test_a_failed_trial_fails_again_in_a_resumed_sweep_which_keeps_the_later_ones(tmp_path: Path) -> None:
    """TPE chooses its eleventh job by the outcomes of those before; here one fails for a passing reason."""
    pytest.importorskip("optuna")
    sweep, broken = tmp_path / "sweep", tmp_path / "broken"
    small = [*without(SMALL, "optimizer.lr", "trainer.max_epochs"), "trainer.max_epochs=1", "trust=true"]
    fails = [f"+callbacks.fail.{key}={value}" for key, value in
             {"_target_": "tests.interruptions.FailWhile", "path": broken, "job": 2}.items()]  # fmt: skip
    options = ["sweep=optuna", "hydra.sweeper.n_trials=12", f"hydra.sweep.dir={sweep}"]
    broken.touch()
    assert apart(tmp_path, *small, *fails, *options).code == 1
    chosen = {name: settings(job).optimizer.lr for name, job in jobs(sweep).items()}
    assert len(chosen) == 11
    broken.unlink()
    second = apart(tmp_path, *resumed(sweep))
    assert second.code == 1 and "11 of 12 jobs finished" in second.out, second.err
    assert f"later jobs were chosen by that; resume={sweep}/2 resumes it by itself" in second.err
    assert apart(tmp_path, *resumed(sweep / "2")).code == 0
    third = apart(tmp_path, *resumed(sweep))
    assert third.code == 0 and "12 of 12 jobs finished" in third.out, third.err
    found = {name: settings(job).optimizer.lr for name, job in jobs(sweep).items()}
    assert {name: found[name] for name in chosen} == chosen


@pytest.mark.slow
@pytest.mark.ddp
def test_joblib_runs_jobs_in_parallel(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    sweep = tmp_path / "sweep"
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.devices=1,2", f"hydra.sweep.dir={sweep}"]
    # Not forked like the others: joblib's idle workers end with an interpreter, but not with a forked process.
    command = [sys.executable, str(REPOSITORY / "train.py"), *SMALL, *options]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert sorted(jobs(sweep)) == ["0", "1"]
    assert "2 of 2 jobs finished" in ended.stdout


@pytest.mark.slow
@pytest.mark.ddp
def test_jobs_of_joblib_end_with_the_sweep(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    sweep = tmp_path / "sweep"
    small = without(SMALL, "trainer.max_epochs")
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", f"hydra.sweep.dir={sweep}"]
    command = Command(tmp_path, *small, *options, "trainer.max_epochs=5000", "trainer.devices=2")
    command.wait_for(lambda: len(list(sweep.rglob("metrics.csv"))) == 2)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGKILL)
    command.wait()
    end = time.monotonic() + 30
    while processes_of(sweep) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_of(sweep) == []


@pytest.mark.slow
def test_submitit_runs_jobs_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    sweep = tmp_path / "sweep"
    options = ["hydra/launcher=submitit_local", "seed=0,1", f"hydra.sweep.dir={sweep}"]
    ended = apart(tmp_path, *SMALL, *options)
    assert ended.code == 0, ended.err
    assert sorted(jobs(sweep)) == ["0", "1"]
