"""SLURM jobs, started as docs/cluster.md describes, on the one-node cluster of `tests.cluster`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fer_lightning.config.validation import _check_devices
from fer_lightning.distributed import ranks
from fer_lightning.errors import UserError
from tests import cluster
from tests.conftest import TINY
from tests.processes import REPOSITORY, processes_of
from tests.resuming import assert_same, ending, outcome, resumed, waiting, without

SMALL = (
    *without(TINY, "data.batch_size", "logger", "trainer.max_epochs"),
    "model._target_=tests.interruptions.SmallNetwork",
    "model.dropout=0.2",
    "data.batch_size=30",
    "data.eval_batch_size=16",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=3",
    "logger=csv",
)
"""5 batches an epoch."""

MINUTES = re.compile(r"--time=\S+")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")


def batch_script(*settings: str, accelerator: str = "accelerator=slurm") -> str:
    """The batch script of docs/cluster.md without its GPUs, with other overrides and less time."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
    found = re.search(r"```bash\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    assert found
    script = "".join(line for line in found[1].splitlines(keepends=True) if "--gpus" not in line)
    python = shlex.join([sys.executable, str(REPOSITORY / "train.py"), accelerator, *settings])
    script, n = re.subn(r"python train\.py accelerator=slurm .*", lambda match: python, script)
    assert n == 1
    return MINUTES.sub("--time=10", script)


class Job:
    """A submitted job.

    Attributes:
        number: its id.
        folder: the folder it was submitted in.
    """

    def __init__(self, number: str, folder: Path) -> None:
        self.number, self.folder = number, folder

    @property
    def run(self) -> Path:
        return self.folder / "outputs" / "slurm" / self.number

    @property
    def out(self) -> str:
        """The output of the job and of srun."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("slurm-*.out")))

    def facts(self) -> dict[str, str]:
        """What scontrol prints of the job, or of the last task of an array."""
        return dict(re.findall(r"(\w+)=(\S*)", scontrol("show", "job", "--oneliner", self.number)))

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"condition not met in {seconds} s: {self.facts()}\n{self.out}"
            time.sleep(0.2)

    def wait(self, state: str, seconds: float = 120) -> None:
        """Wait for the end of the job, which must be in this state."""
        self.wait_for(lambda: self.facts()["JobState"] in ENDED, seconds)
        assert self.facts()["JobState"] == state, self.out


def scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True).stdout


def submit(folder: Path, script: str, *options: str, tasks: int = 1) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.sh").write_text(script)
    # Options on the command line override those of the script.
    sizes = ["--nodes=1", f"--ntasks-per-node={tasks}", "--cpus-per-task=1"]
    command = ["sbatch", "--parsable", *sizes, *options, "job.sh"]
    ended = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return Job(ended.stdout.strip(), folder)


def on_this_machine(folder: Path, devices: int) -> Path:
    """A run in a new process, not a forked one, so that it has one thread from the beginning."""
    settings = [*SMALL, f"trainer.devices={devices}", f"hydra.run.dir={folder}"]
    command = [sys.executable, str(REPOSITORY / "train.py"), *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if reason := cluster.missing():
        cluster.skip(reason)
    with pytest.MonkeyPatch.context() as patch, cluster.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as added:
        for name, value in {**added, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def without_slurm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Returns the folder of the same run without SLURM, for a number of devices."""
    runs: dict[int, Path] = {}

    def run(devices: int) -> Path:
        if devices not in runs:
            runs[devices] = on_this_machine(tmp_path_factory.mktemp("without_slurm") / "run", devices)
        return runs[devices]

    return run


needs_slurm = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.ddp, pytest.mark.usefixtures("slurm")]


def marked(test: Callable[..., None]) -> Callable[..., None]:
    for mark in needs_slurm:
        test = mark(test)
    return test


@marked
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_slurm_job_equals_the_run_without_slurm(
    tasks: int, tmp_path: Path, without_slurm: Callable[[int], Path]
) -> None:
    job = submit(tmp_path, batch_script(*SMALL), tasks=tasks)
    job.wait("COMPLETED")
    assert_same(job.run, outcome(without_slurm(tasks)))  # predictions.csv among it
    assert job.out.count("report   ") == 1
    assert "srun: error" not in job.out


@marked
def test_every_task_of_an_array_has_its_own_folder(tmp_path: Path) -> None:
    script = batch_script(*SMALL, "seed=NUMBER").replace("NUMBER", "$SLURM_ARRAY_TASK_ID")
    job = submit(tmp_path, script, "--array=0-1")
    job.wait_for(lambda: len(list(tmp_path.glob("outputs/slurm/*/metrics.json"))) == 2)
    for task in (0, 1):
        config = (tmp_path / "outputs" / "slurm" / f"{job.number}_{task}" / "config.yaml").read_text()
        assert f"\nseed: {task}\n" in config


@marked
@pytest.mark.parametrize(
    ("partition", "tasks", "devices"), [("low", 1, 1), ("low", 2, 2), ("low", 1, 2), ("sudden", 2, 2)]
)
def test_a_preempted_job_resumes_to_the_same_weights(
    partition: str, tasks: int, devices: int, tmp_path: Path, without_slurm: Callable[[int], Path]
) -> None:
    """It ends, within its grace time if there is one, is requeued and resumes after the other job."""
    settings = [*SMALL, *waiting("SIGTERM", tmp_path / "once")]
    if tasks < devices:
        settings += [f"trainer.devices={devices}"]
    low = submit(tmp_path / "low", batch_script(*settings), f"--partition={partition}", "--exclusive", tasks=tasks)
    low.wait_for((tmp_path / "once").exists)
    high = submit(tmp_path / "high", "#!/bin/bash\nsleep 1\n", "--partition=high", "--exclusive")
    high.wait("COMPLETED")
    assert low.facts()["JobState"] == "PENDING"
    low.wait("COMPLETED")
    assert low.facts()["Restarts"] == "1"
    assert "from last.ckpt" in low.out
    assert "SLURM does not requeue" not in low.out
    assert low.out.count(f"`python train.py resume={low.run}`") == 1
    assert_same(low.run, outcome(without_slurm(devices)))


@marked
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_near_its_time_limit_resumes_to_the_same_weights(
    tasks: int, tmp_path: Path, without_slurm: Callable[[int], Path]
) -> None:
    script = batch_script(*SMALL, *waiting("SIGUSR1", tmp_path / "once")).replace("USR1@90", "USR1@10")
    job = submit(tmp_path, script, "--time=1", tasks=tasks)
    job.wait("COMPLETED", seconds=240)
    assert job.facts()["Restarts"] != "0"  # more than once where the warning came before training
    assert "ended by SIGUSR1" in job.out
    assert "from last.ckpt" in job.out
    assert_same(job.run, outcome(without_slurm(tasks)))


@marked
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_cancelled_job_resumes_only_on_request(
    tasks: int, tmp_path: Path, without_slurm: Callable[[int], Path]
) -> None:
    job = submit(tmp_path, batch_script(*SMALL, *waiting("SIGTERM", tmp_path / "once")), tasks=tasks)
    job.wait_for((tmp_path / "once").exists)
    subprocess.run(["scancel", job.number], check=True)
    job.wait("CANCELLED")
    job.wait_for(lambda: processes_of(job.run) == [])
    assert job.facts()["Restarts"] == "0"
    assert (job.run / "checkpoints" / "last.ckpt").is_file()
    script = batch_script(*resumed(job.run)[1:], accelerator=resumed(job.run)[0])
    submit(tmp_path / "again", script, tasks=tasks).wait("COMPLETED")
    assert_same(job.run, outcome(without_slurm(tasks)))


@marked
def test_a_job_without_requeue_reports_that(tmp_path: Path) -> None:
    script = batch_script(*SMALL, *waiting("SIGUSR1", tmp_path / "once"))
    job = submit(tmp_path, script, "--no-requeue")
    job.wait_for((tmp_path / "once").exists)
    subprocess.run(["scancel", "--signal=USR1", job.number], check=True)
    job.wait("FAILED")
    assert f"SLURM does not requeue job {job.number}" in job.out
    assert "submit jobs with --requeue" in job.out
    assert (job.run / "checkpoints" / "last.ckpt").is_file()


@marked
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.batch_size=31", "use 30 or 32"),  # detected before the ranks connect
        ("data.synthetic.n_train=0", "n_train"),  # by rank 0, when it reads the data
        ("monitor.metric=val/nothing", "no such score"),  # by every rank
    ],
)
def test_a_user_error_is_printed_once(setting: str, said: str, tmp_path: Path) -> None:
    settings = without(SMALL, setting.partition("=")[0])
    job = submit(tmp_path, batch_script(*settings, setting), tasks=2)
    job.wait("FAILED", seconds=60)
    lines = [line for line in job.out.splitlines() if not line.startswith(("srun:", "slurmstepd"))]
    assert len(lines) == 1, job.out
    assert said in lines[0]


@marked
def test_a_killed_rank_ends_the_job(tmp_path: Path, without_slurm: Callable[[int], Path]) -> None:
    end = ending("on_train_batch_start", 8, "SIGKILL", tmp_path / "once", rank=1)
    job = submit(tmp_path, batch_script(*SMALL, *end), tasks=2)
    job.wait("FAILED", seconds=60)
    assert "Traceback" not in job.out
    assert "task 1: Killed" in job.out
    assert processes_of(job.run) == []
    script = batch_script(*resumed(job.run)[1:], accelerator=resumed(job.run)[0])
    submit(tmp_path / "again", script, tasks=2).wait("COMPLETED")
    assert_same(job.run, outcome(without_slurm(2)))


@marked
def test_a_sweep_within_a_job_resumes(tmp_path: Path) -> None:
    script = batch_script(*SMALL, "seed=0,1", *waiting("SIGUSR1", tmp_path / "once"))
    job = submit(tmp_path, script.replace("accelerator=slurm", "-m accelerator=slurm"))
    job.wait_for((tmp_path / "once").exists)
    subprocess.run(["scancel", "--signal=USR1", job.number], check=True)
    job.wait_for(lambda: job.facts()["Restarts"] == "1")
    job.wait("COMPLETED")
    assert "from last.ckpt" in job.out
    assert "2 of 2 jobs finished" in job.out
    assert len(list(tmp_path.glob(f"multirun/slurm/{job.number}/*/metrics.json"))) == 2


def sweep(folder: Path, *settings: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """A sweep whose jobs submitit submits to SLURM."""
    pytest.importorskip("submitit")
    resources = ["partition=main", "timeout_min=5", "cpus_per_task=1"]
    launcher = ["hydra/launcher=submitit_slurm", *(f"hydra.launcher.{resource}" for resource in resources)]
    command = [sys.executable, str(REPOSITORY / "train.py"), "-m", *SMALL, *launcher, *settings]
    options = [f"hydra.sweep.dir={folder}/sweep"]
    return subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=seconds)


@marked
def test_submitit_runs_jobs_on_one_and_two_devices_and_reports_failed_ones(tmp_path: Path) -> None:
    ended = sweep(tmp_path, "trainer.devices=1,2,0")
    assert ended.returncode == 1
    assert "2 of 3 jobs finished" in ended.stdout
    assert "2: trainer.devices=0: use a number from 1" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/metrics.json")) == ["0", "1"]


@marked
def test_submitit_reports_a_killed_job_and_runs_the_others(tmp_path: Path) -> None:
    """submitit learns of it from sacct."""
    end = ending("on_train_batch_start", 8, "SIGKILL", tmp_path / "once")
    ended = sweep(tmp_path, "trainer.max_epochs=3,4", *end)
    assert ended.returncode == 1
    assert "1 of 2 jobs finished" in ended.stdout
    assert "did not finish" in ended.stderr
    again = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *resumed(tmp_path / "sweep")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert again.returncode == 0, again.stderr
    assert "2 of 2 jobs finished" in again.stdout


@marked
def test_a_preempted_job_of_submitit_resumes(tmp_path: Path, without_slurm: Callable[[int], Path]) -> None:
    pytest.importorskip("submitit")
    settings = ["trainer.devices=2", "resume=auto", *waiting("SIGTERM", tmp_path / "once")]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(sweep, tmp_path, *settings, "hydra.launcher.partition=low")
        end = time.monotonic() + 120
        while not (tmp_path / "once").exists():
            assert time.monotonic() < end and not ended.done(), ended
            time.sleep(0.2)
        submit(tmp_path / "high", "#!/bin/bash\nsleep 1\n", "--partition=high", "--exclusive").wait("COMPLETED")
    assert ended.result().returncode == 0, ended.result().stderr
    assert "1 of 1 jobs finished" in ended.result().stdout
    assert_same(tmp_path / "sweep" / "0", outcome(without_slurm(2)))


STEP = {
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "12",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_CPUS_ON_NODE": "16",
}


def test_variables_of_srun_are_translated() -> None:
    environment = dict(STEP)
    assert ranks.started_outside(environment) == ranks.Ranks(rank=3, local_rank=1, world=6, local_world=2)
    assert environment["MASTER_ADDR"] == "node07"
    assert environment["OMP_NUM_THREADS"] == "8"
    for name, threads in (("SLURM_CPUS_PER_TASK", "4"), ("OMP_NUM_THREADS", "5")):
        environment = STEP | {name: threads}
        ranks.started_outside(environment)
        assert environment["OMP_NUM_THREADS"] == threads


def test_unevenly_spread_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="--ntasks-per-node"):
        ranks.started_outside(STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1"})


def test_a_single_task_is_a_single_process() -> None:
    assert ranks.started_outside(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_signal_during_interpreter_shutdown_is_ignored() -> None:
    program = (
        "import atexit, os, signal, sys\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGUSR1)\n"
        "from fer_lightning.app import main\n"
        "sys.argv = ['train.py', '--cfg', 'job']\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_tasks_that_do_not_see_every_gpu_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with --gpus-per-task. No GPU is needed here."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    trainer = {"accelerator": "gpu", "devices": "auto", "precision": "32-true"}
    with pytest.raises(UserError, match="--gpus-per-node, not --gpus-per-task"):
        _check_devices({"trainer": trainer, "data": {"batch_size": 128}}, ranks.Ranks(1, 1, 2, 2))
