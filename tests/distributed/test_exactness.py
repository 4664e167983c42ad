"""One device or several: the same images, the same scores, and one error where there is one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fer_lightning.distributed import launch
from tests.conftest import TINY
from tests.interruptions import RecordBatches, batches
from tests.processes import REPOSITORY, Command, apart, processes_of
from tests.resuming import assert_same, ending, outcome, resumed, waiting, without

pytestmark = pytest.mark.ddp

SMALL = (
    *without(TINY, "data.batch_size"),
    "model._target_=tests.interruptions.SmallNetwork",
    "data.batch_size=30",
    "data.eval_batch_size=16",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=3",
    "augment.batch_norm_images=0",  # statistics that are estimated are those of all ranks in any case
)
"""60 test images in batches of 16, the last of which is not full; 40 validation images."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one device."""
    folder = tmp_path_factory.mktemp("alone")
    ended = apart(folder, *SMALL, f"hydra.run.dir={folder}/run", RecordBatches.override(folder / "record"))
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two devices."""
    folder = tmp_path_factory.mktemp("two")
    record = RecordBatches.override(folder / "record")
    ended = apart(folder, *SMALL, "trainer.devices=2", "logger=csv", f"hydra.run.dir={folder}/run", record)
    assert ended.code == 0, ended.err
    return folder / "run"


def test_ranks_divide_the_batches_of_one_device(alone: Path, two_ranks: Path) -> None:
    whole = [batch["rows"] for batch in batches(alone.parent / "record")]
    first, second = ([batch["rows"] for batch in batches(two_ranks.parent / "record", rank)] for rank in (0, 1))
    assert len(whole) == len(first) == len(second) == 3 * 4
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    assert all(len(a) == len(b) == 15 for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "devices", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_every_image_is_scored_once_on_any_number_of_devices(devices: int, alone: Path, tmp_path: Path) -> None:
    """The same weights scored by 1, 2, 3 and 5 ranks: shards are uneven, and with 5 one has no test image."""
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "report")
    again = apart(tmp_path, *resumed(run, f"trainer.devices={devices}", "allow_changes=true"))
    assert again.code == 0, again.err
    for name in ("predictions.csv", "confusion_matrix.csv", "classification_report.csv"):
        assert (run / "report" / name).read_bytes() == (alone / "report" / name).read_bytes()
    one, several = (json.loads((folder / "metrics.json").read_text()) for folder in (alone, run))
    assert {k: v for k, v in several.items() if "second" not in k} == {
        k: v for k, v in one.items() if "second" not in k
    }


def test_the_best_checkpoint_has_the_scores_of_its_validation(two_ranks: Path) -> None:
    """Each rank has its own batch-norm statistics while it trains; the saved ones are validated."""
    metrics = json.loads((two_ranks / "metrics.json").read_text())
    with (two_ranks / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[int(metrics["train/best_epoch"])]
    for name in ("val/loss", "val/accuracy", "val/f1_macro", "val/ece"):
        assert float(row[name]) == pytest.approx(metrics[name], abs=1e-6)


def test_a_run_on_two_devices_writes_one_run_folder(two_ranks: Path) -> None:
    assert sorted(path.name for path in two_ranks.glob("*.log")) == ["rank0.log", "rank1.log", "train.log"]
    assert json.loads((two_ranks / "metrics.json").read_text())["test/accuracy"] >= 0
    assert len((two_ranks / "report" / "predictions.csv").read_text().splitlines()) == 61
    with (two_ranks / "csv" / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss_step"]]
    assert len(steps) == len(set(steps))


@pytest.mark.parametrize("devices", [1, 2])
def test_limits_of_evaluation_count_the_batches_of_all_devices(devices: int, tmp_path: Path) -> None:
    limits = ("trainer.limit_val_batches=2", "trainer.limit_test_batches=0.8")  # 2 of 3 batches, and 3 of 4
    settings = (*without(SMALL, "trainer.max_epochs"), "trainer.max_epochs=1", f"trainer.devices={devices}")
    ended = apart(tmp_path, *settings, *limits, f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    assert len((tmp_path / "run/report/predictions.csv").read_text().splitlines()) == 1 + 3 * 16
    (row,) = csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines())
    assert sum(float(value) for name, value in row.items() if name.startswith("val/support/")) in (0, 32)


@pytest.mark.parametrize("chosen", [None, "7"])
def test_ranks_have_time_to_end_their_batch_and_to_save(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun kills them after 30 seconds otherwise."""
    from torch.distributed.launcher.api import LaunchConfig

    environments = []

    def started(command: list[str], env: dict[str, str], **options: object) -> None:
        environments.append(env)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.subprocess, "Popen", started)
    if chosen:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", chosen)
    with pytest.raises(KeyboardInterrupt):
        launch.fan_out(tmp_path, 2, trust=False)
    (environment,) = environments
    monkeypatch.setattr(os, "environ", environment)
    if hasattr(LaunchConfig, "shutdown_timeout"):  # not in all versions of torch
        config = LaunchConfig(1, 1, 2)
        assert config.shutdown_timeout == int(chosen or 300)


@pytest.mark.slow
def test_torchrun_can_start_the_ranks(two_ranks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    settings = [*SMALL, "trainer.devices=auto", "logger=csv", f"hydra.run.dir={tmp_path}/run"]
    ended = subprocess.run([*command, *settings], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    for name in ("predictions.csv", "confusion_matrix.csv"):
        ours = (two_ranks / "report" / name).read_bytes()
        assert (tmp_path / "run" / "report" / name).read_bytes() == ours
    assert ended.stdout.count("report   ") == 1


@pytest.mark.slow
def test_torchrun_ranks_report_a_user_error_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    settings = [*SMALL, "trainer.devices=4", f"hydra.run.dir={tmp_path}/run"]
    ended = subprocess.run([*command, *settings], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 1
    assert ended.stderr.count("error: trainer.devices=4 contradicts the 2 processes") == 1


def test_accelerator_slurm_outside_of_slurm_is_refused(tmp_path: Path) -> None:
    ended = apart(tmp_path, "accelerator=slurm", "data=synthetic")
    assert ended.code == 1
    assert "SLURM_JOB_ID" in ended.err
    assert ended.err.count("\n") == 1, ended.err


def test_a_user_error_on_every_rank_is_printed_once(tmp_path: Path) -> None:
    """Detected only when the data are read, after the ranks have started."""
    settings = ["data=fer2013", f"data.path={tmp_path}/nothing.csv", "trainer.devices=2"]
    base = [setting for setting in SMALL if not setting.startswith(("data=", "data.synthetic"))]
    ended = apart(tmp_path, *base, *settings, f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 1
    assert ended.err.count("nothing.csv") == 1, ended.err
    assert ended.err.count("\n") == 1, ended.err


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_which_can_be_resumed(tmp_path: Path, two_ranks: Path) -> None:
    run, end = tmp_path / "run", ending("on_train_batch_start", 6, "SIGKILL", tmp_path / "once", rank=1)
    ended = apart(tmp_path, *SMALL, *end, "trainer.devices=2", "logger=csv", f"hydra.run.dir={run}")
    assert ended.code == 1
    assert "rank 1 was ended by SIGKILL" in ended.err
    assert "Traceback" not in ended.err
    assert processes_of(run) == []
    assert apart(tmp_path, *resumed(run)).code == 0
    assert_same(run, outcome(two_ranks))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 7])
def test_resume_of_two_interrupted_ranks_is_bitwise_equal(batch: int, tmp_path: Path, two_ranks: Path) -> None:
    """The signal reaches one of them; they agree on the batch after which they end."""
    run, end = tmp_path / "run", ending("on_train_batch_start", batch, "SIGTERM", tmp_path / "once", rank=1)
    ended = apart(tmp_path, *SMALL, *end, "trainer.devices=2", "logger=csv", f"hydra.run.dir={run}")
    assert ended.code == 143, ended.err
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert processes_of(run) == []
    assert apart(tmp_path, *resumed(run)).code == 0
    assert_same(run, outcome(two_ranks))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["model._target_=tests.interruptions.SmallNetwork", "model=resnet18"])
def test_resume_of_three_interrupted_ranks_is_bitwise_equal(model: str, tmp_path: Path) -> None:
    """DDP rebuilds its buckets in each process, and with them the order of a sum of three; ResNet-18 has three."""
    settings = [*without(SMALL, "model", "model.width", "model._target_"), model, "trainer.devices=3", "logger=csv"]
    assert apart(tmp_path, *settings, f"hydra.run.dir={tmp_path}/whole").code == 0
    end = ending("on_train_batch_start", 7, "SIGTERM", tmp_path / "once", rank=1)
    assert apart(tmp_path, *settings, *end, f"hydra.run.dir={tmp_path}/run").code == 143
    second = apart(tmp_path, *resumed(tmp_path / "run"))
    assert second.code == 0, second.err
    assert_same(tmp_path / "run", outcome(tmp_path / "whole"))


@pytest.mark.slow
def test_a_failing_rank_is_reported_with_its_own_traceback(tmp_path: Path) -> None:
    end = ending("on_train_batch_start", 3, "SIGNONE", tmp_path / "once", rank=1)  # no such signal: AttributeError
    ended = apart(tmp_path, *SMALL, *end, "trainer.devices=2", f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 1
    assert "SIGNONE" in ended.err
    assert "rank 1 failed" in ended.err
    assert "Connection closed" not in ended.err
    assert processes_of(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ranks_save_and_end_with_their_launcher(number: signal.Signals, tmp_path: Path) -> None:
    run, once = tmp_path / "run", tmp_path / "once"
    wait = waiting("SIGTERM", once, n=7)
    command = Command(tmp_path, *SMALL, *wait, "trainer.devices=2", f"hydra.run.dir={run}")
    command.wait_for(once.exists)
    assert len(processes_of(run)) == 3  # torchrun and two ranks
    assert command.process.pid is not None
    os.kill(command.process.pid, number)
    ended = command.wait()
    assert ended.code == (-9 if number == signal.SIGKILL else 128 + number)
    end = time.monotonic() + (20 if number == signal.SIGKILL else 0)  # which cannot wait for its ranks
    while processes_of(run) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_of(run) == []
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 7
    assert "Traceback" not in ended.err


def test_a_weighted_loss_on_two_ranks_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Gradients averaged over two ranks against PyTorch's loss over both halves at once."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import sys, torch, torch.distributed as dist\n"
        "from fer_lightning.distributed import ranks\n"
        "from fer_lightning.training.losses import CrossEntropy\n"
        "ranks.connect()\n"
        "r = dist.get_rank()\n"
        "data = torch.load(sys.argv[1], weights_only=True)\n"
        "w = torch.zeros(5, 7, requires_grad=True)\n"
        "loss = CrossEntropy(data['counts'], weights='inverse', label_smoothing=0.1)\n"
        "loss(data['x'][r::2] @ w, data['y'][r::2]).backward()\n"
        "dist.all_reduce(w.grad)\n"
        "torch.save(w.grad / 2, f'{sys.argv[1]}.{r}')\n"
        "ranks.disconnect()\n"
    )
    rng = np.random.default_rng(0)
    counts = [3995, 436, 4097, 7215, 4830, 3171, 4965]
    x = torch.tensor(rng.normal(size=(40, 5)), dtype=torch.float32)
    y = torch.tensor(rng.choice(7, 40, p=np.array(counts) / sum(counts)))
    torch.save({"x": x, "y": y, "counts": counts}, tmp_path / "data")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "data")], check=True, env=environment, timeout=120)
    w = torch.zeros(5, 7, requires_grad=True)
    F.cross_entropy(x @ w, y, weight=1 / torch.tensor(counts, dtype=torch.float32), label_smoothing=0.1).backward()
    assert w.grad is not None
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(f"{tmp_path}/data.{rank}", weights_only=True), w.grad)
