"""Sweeps: every job runs what it was given, on every rank; what failed is told; what is done is not done again."""

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
from fer_lightning.config.dataset import resolve
from fer_lightning.config.validation import check
from tests.conftest import TINY
from tests.processes import REPOSITORY, Command, apart, processes_of
from tests.runs.test_resume import ending

SMALL = ("-m", *TINY, "model._target_=tests.interruptions.SmallNetwork")


def jobs(sweep: Path) -> dict[str, Path]:
    """The folders of a sweep's jobs that finished, by their numbers."""
    return {path.parent.name: path.parent for path in sorted(sweep.rglob("metrics.json"))}


def settings(job: Path) -> Any:
    return OmegaConf.load(job / "config.yaml")


def test_a_sweep_trains_every_combination(tmp_path: Path) -> None:
    ended = apart(tmp_path, *SMALL, "imbalance=none,weighted", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep")
    assert ended.code == 0, ended.err
    found = {(settings(job).imbalance.name, settings(job).seed) for job in jobs(tmp_path / "sweep").values()}
    assert found == {("none", 0), ("none", 1), ("weighted", 0), ("weighted", 1)}
    assert "4 of 4 jobs finished" in ended.out


@pytest.mark.parametrize(("sweep", "jobs"), [("imbalance", 14 * 3), ("cleaning", 4 * 3)])
def test_every_option_of_a_study_composes_and_contradicts_nothing(sweep: str, jobs: int) -> None:
    app.register()
    source = ["data.path=fer2013.csv", "data.votes=fer2013new.csv"]
    source += ["callbacks=none", "logger=none"]  # others need a run folder
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


def test_a_failing_job_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    ended = apart(tmp_path, *SMALL, "data.batch_size=32,1,16", f"hydra.sweep.dir={sweep}")
    assert ended.code == 1
    assert sorted(jobs(sweep)) == ["0", "2"]
    assert "job 1 failed (" in ended.err
    assert "data.batch_size=1: batch norm needs 2 images" in ended.err
    assert "2 of 3 jobs finished" in ended.out
    assert "Traceback" not in ended.err


def test_a_killed_sweep_goes_on_without_doing_again_what_is_done(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    long = [s for s in SMALL if "max_epochs" not in s]
    choices = ["seed=0,1,2", "trainer.max_epochs=3", f"hydra.sweep.dir={sweep}"]
    # Once in the second job: 5 batches an epoch and 3 epochs in the first one.
    end = ending("on_train_batch_start", 6, "SIGKILL", tmp_path / "once")
    command = Command(tmp_path, *long, *choices, *end)
    assert command.wait().code == -9
    done = {name: (job / "metrics.json").stat().st_mtime_ns for name, job in jobs(sweep).items()}
    assert len(done) < 3
    ended = apart(tmp_path, f"resume={sweep}")
    assert ended.code == 0, ended.err
    assert sorted(jobs(sweep)) == ["0", "1", "2"]
    for name, written in done.items():
        assert (sweep / name / "metrics.json").stat().st_mtime_ns == written
    assert [settings(job).seed for job in jobs(sweep).values()] == [0, 1, 2]
    assert "3 of 3 jobs finished" in ended.out


def test_being_told_to_end_ends_the_sweep_not_only_its_job(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    end = ending("on_train_batch_start", 2, "SIGTERM", tmp_path / "once")
    assert apart(tmp_path, *SMALL, "seed=0,1", f"hydra.sweep.dir={sweep}", *end).code == 143
    assert jobs(sweep) == {}
    assert not (sweep / "1").exists()
    assert apart(tmp_path, f"resume={sweep}").code == 0
    assert len(jobs(sweep)) == 2


@pytest.mark.ddp
def test_one_and_two_devices_in_one_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    ended = apart(tmp_path, *SMALL, "trainer.devices=1,2", "imbalance=weighted", f"hydra.sweep.dir={sweep}")
    assert ended.code == 0, ended.err
    logs = {name: sorted(p.name for p in job.glob("rank*.log")) for name, job in jobs(sweep).items()}
    assert logs == {"0": [], "1": ["rank0.log", "rank1.log"]}


@pytest.mark.ddp
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_optuna_gets_the_score_of_what_it_asked_for(devices: int, tmp_path: Path) -> None:
    """Every trial's ranks ran the trial's own values, and the value returned is the one at the best checkpoint."""
    pytest.importorskip("optuna")
    sweep = tmp_path / "sweep"
    small = [s for s in SMALL if not s.startswith("optimizer.lr")]
    options = ["sweep=optuna", "hydra.sweeper.n_trials=2", f"trainer.devices={devices}", f"hydra.sweep.dir={sweep}"]
    ended = apart(tmp_path, *small, *options)
    assert ended.code == 0, ended.err
    found = jobs(sweep)
    assert sorted(found) == ["0", "1"]
    rates = {settings(job).optimizer.lr for job in found.values()}
    assert len(rates) == 2
    scores = {name: json.loads((job / "metrics.json").read_text())["val/f1_macro"] for name, job in found.items()}
    best = OmegaConf.load(sweep / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(scores.values()))
    assert best.best_params["optimizer.lr"] in rates


@pytest.mark.slow
@pytest.mark.ddp
def test_joblib_runs_jobs_beside_each_other(tmp_path: Path) -> None:
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
def test_joblib_s_jobs_end_with_the_sweep(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    sweep = tmp_path / "sweep"
    small = [s for s in SMALL if "max_epochs" not in s]
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
