"""Faults around a run: disks, networks, caches, clocks, impatient users. docs/reliability.md lists them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fer_lightning.data.readers.cache import FORMAT
from fer_lightning.distributed.signals import INSIST
from fer_lightning.report import tracking
from tests.cluster import skip
from tests.data.conftest import csv_bytes, fer_rows
from tests.processes import REPOSITORY, Command, apart
from tests.report.test_wandb import records
from tests.resuming import SETTINGS, assert_same, ending, outcome, resumed, table, uninterrupted_run, without
from tests.wandb_server import WandbServer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a fault."""
    return uninterrupted_run(tmp_path_factory.getbasetemp())


def halted(folder: Path, *overrides: str, hook: str = "on_train_batch_start", n: int = 6) -> Command:
    """The training command, stopped at a hook until `continue_`."""
    once = folder / "halted"
    command = Command(folder, *overrides, *ending(hook, n, "SIGSTOP", once))
    command.wait_for(once.exists)
    return command


def continue_(command: Command) -> None:
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGCONT)


def children(command: Command, name: str) -> list[int]:
    """Child processes of the command whose command line contains `name`."""
    tasks = Path(f"/proc/{command.process.pid}/task").iterdir()
    started = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in started if name in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server that receives runs."""
    server = WandbServer()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    yield server
    server.go_away()


WANDB = (*without(SETTINGS, "logger"), "logger=[csv,wandb]")


def logged(run: Path) -> list[float]:
    """The macro-F1 of each epoch in W&B's files in a run folder."""
    rows = [record.history.item for record in records(run) if record.HasField("history")]
    values = [{item.key or ".".join(item.nested_key): item.value_json for item in row} for row in rows]
    return [json.loads(row["val/f1_macro"]) for row in values if "val/f1_macro" in row]


@pytest.mark.parametrize(
    "fault", ["server gone", *(pytest.param(f, marks=pytest.mark.slow) for f in ("server hangs", "service killed"))]
)
def test_failure_of_wandb_during_a_run_costs_one_line_and_a_few_seconds(
    fault: str, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """The run ends with the same results, and its folder holds what it logged, ready to be synchronized."""
    run = tmp_path / "run"
    command = halted(tmp_path, *WANDB, "logger.wandb.finish_timeout=1", f"hydra.run.dir={run}")
    if fault == "server gone":
        server.go_away()
    elif fault == "server hangs":
        server.hang()
    else:
        (service,) = children(command, "wandb-core")
        os.kill(service, signal.SIGKILL)
    since = time.monotonic()
    continue_(command)
    ended = command.wait()
    assert ended.code == 0, ended.err
    assert time.monotonic() - since < 60  # W&B itself would go on for longer
    (line,) = [line for line in (ended.out + ended.err).splitlines() if "`wandb sync --" in line]
    (folder,) = run.glob("wandb/run-*")
    assert f"`wandb sync --include-online {folder}`" in line
    assert "Traceback" not in ended.err
    assert_same(run, outcome(whole))
    if fault == "service killed":
        return
    epochs = [float(row["val/f1_macro"]) for row in table(run / "metrics.csv")]
    assert logged(run) == pytest.approx(epochs)
    assert len(list(folder.glob("files/media/table/test/confusion_matrix*"))) == 1
    assert server.history == []
    if fault == "server hangs":
        later = WandbServer()
        monkeypatch.setenv("WANDB_BASE_URL", later.url)
        command_shown = line.split("`")[1].split()
        sent = subprocess.run([sys.executable, "-m", *command_shown], cwd=tmp_path, capture_output=True, text=True)
        assert sent.returncode == 0, sent.stderr
        assert [row["val/f1_macro"] for row in later.history if "val/f1_macro" in row] == pytest.approx(epochs)
        later.go_away()


@pytest.mark.slow
def test_a_wandb_server_that_hangs_at_the_start_means_offline(server: WandbServer, tmp_path: Path) -> None:
    import wandb  # noqa: F401 (is not on the clock)

    server.hang()
    since = time.monotonic()
    assert tracking.wandb_logger("p", str(tmp_path))._wandb_init["mode"] == "offline"
    assert time.monotonic() - since < 8


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True, text=True)
    if mount.returncode:
        skip(f"only root may mount: {mount.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, pages: int = 0) -> Path:
    """Leave only some free pages of 4 KiB."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(16 << 20))
    os.truncate(filler, filler.stat().st_size - 4096 * pages)
    return filler


def test_a_full_disk_during_the_report_loses_nothing(disk: Path, tmp_path: Path, whole: Path) -> None:
    """With room again, resume writes the same report without training."""
    run = disk / "run"
    command = halted(tmp_path, *SETTINGS, f"hydra.run.dir={run}", hook="on_test_start", n=1)
    trained = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    filler = fill(disk, pages=16)
    continue_(command)
    ended = command.wait()
    assert ended.code == 1
    assert f"error: {run}/report/" in ended.err
    assert ": No space left on device; make room, then" in ended.err
    assert ended.err.count("\n") == 1, ended.err
    filler.unlink()
    report = {
        path.name: path for path in (whole / "report").iterdir() if path.suffix != ".html"
    }  # which holds the time
    written = {path.name: path for path in (run / "report").iterdir()}
    assert 0 < len(written) < len(report)
    assert all(path.read_bytes() == report[name].read_bytes() for name, path in written.items())
    assert not (run / "metrics.json").exists()
    second = apart(tmp_path, *resumed(run))
    assert second.code == 0, second.err
    assert "epoch" not in second.out
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained
    assert_same(run, outcome(whole))
    assert all((run / "report" / name).read_bytes() == path.read_bytes() for name, path in report.items())
    assert (run / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        (["callbacks.last.every_minutes=1e-6"], "checkpoints/last.ckpt"),
        pytest.param([], ".csv_step.json", marks=pytest.mark.slow),
        pytest.param(["logger=none"], "metrics.csv", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_during_training_ends_in_one_line(
    settings: list[str], file: str, disk: Path, tmp_path: Path, whole: Path
) -> None:
    """Whichever file is written first; with room again, the run resumes."""
    run = disk / "run"
    # After a loss was logged, and before the end of an epoch.
    command = halted(tmp_path, *SETTINGS, *settings, f"hydra.run.dir={run}", n=7)
    before = {path: path.read_bytes() for path in run.rglob("*.ckpt")}
    filler = fill(disk)
    continue_(command)
    ended = command.wait()
    assert ended.code == 1
    assert {path: path.read_bytes() for path in run.rglob("*.ckpt")} == before
    assert ended.err.startswith(f"error: {run}/{file}: "), ended.err
    assert "No space left on device" in ended.err
    assert f"resume={run}`" in ended.err
    assert ended.err.count("\n") == 1, ended.err
    filler.unlink()
    second = apart(tmp_path, *resumed(run))
    assert second.code == 0, second.err
    if "logger=none" not in settings:
        assert_same(run, outcome(whole))


FROM_FILE = (
    *(setting for setting in SETTINGS if not setting.startswith("data")),
    "data.batch_size=100",
    "trainer.max_epochs=1",
)


class Source:
    """A CSV, the settings that train on it, and the resulting predictions."""

    def __init__(self, folder: Path) -> None:
        path = folder / "fer2013.csv"
        path.write_bytes(csv_bytes(fer_rows(2100)))
        self.settings = (*FROM_FILE, f"data.path={path}")
        ended = apart(folder, *self.settings, f"data.cache_dir={folder}/cache", f"hydra.run.dir={folder}/run")
        assert ended.code == 0, ended.err
        self.predictions = predictions(folder / "run")


def predictions(run: Path) -> bytes:
    return (run / "report" / "predictions.csv").read_bytes()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("source"))


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_training_with_a_read_only_cache_prints_one_line(
    named: bool, disk: Path, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder named by FER_LIGHTNING_CACHE, or the default one in a read-only home."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    monkeypatch.setenv("FER_LIGHTNING_CACHE", str(disk))
    if not named:
        monkeypatch.delenv("FER_LIGHTNING_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(disk))
    ended = apart(tmp_path, *source.settings, f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    (line,) = [line for line in (ended.out + ended.err).splitlines() if "no cache" in line]
    assert f"no cache in {disk}" in line
    assert "Read-only file system" in line
    assert "set FER_LIGHTNING_CACHE" in line
    assert predictions(tmp_path / "run") == source.predictions


@pytest.mark.slow
def test_a_user_without_a_home_trains_without_a_cache(source: Source) -> None:
    """As in a container that runs under an arbitrary uid: no such user, no HOME, no write permission."""
    if os.geteuid():
        pytest.skip("only root may become another user")
    reads_all = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    who = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", *reads_all, "env", "-u", "HOME"]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # noqa: PTH101
        command = [*who, "-u", "FER_LIGHTNING_CACHE", sys.executable, str(REPOSITORY / "train.py"), *source.settings]
        ended = subprocess.run(
            [*command, f"hydra.run.dir={folder}/run"], cwd=folder, capture_output=True, text=True, timeout=240
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("no cache in") == 1
        assert [path.name for path in Path(folder).iterdir()] == ["run"]
        assert predictions(Path(folder) / "run") == source.predictions


def in_the_middle_of_the_cache(tmp_path: Path, source: Source) -> tuple[Command, Path]:
    """A run stopped while it wrote its table into an empty cache, and the cache's folder of tables."""
    for attempt in range(30):  # writing takes some milliseconds
        cache = tmp_path / f"cache{attempt}"
        folder = tmp_path / f"first{attempt}"
        command = Command(folder, *source.settings, f"data.cache_dir={cache}", f"hydra.run.dir={folder}/run")
        tables, end = cache / f"v{FORMAT}" / "tables", time.monotonic() + 120
        while not (tables.is_dir() and os.listdir(tables)) and time.monotonic() < end:
            pass
        assert command.process.pid is not None
        os.kill(command.process.pid, signal.SIGSTOP)
        time.sleep(0.05)
        if [name[0] for name in os.listdir(tables)] == ["."]:
            return command, tables
        command.process.kill()
    raise AssertionError("never stopped within the write")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_jobs_can_start_with_an_empty_cache(killed: bool, tmp_path: Path, source: Source) -> None:
    """The second one starts while the first one writes, which then continues or is killed."""
    first, tables = in_the_middle_of_the_cache(tmp_path, source)
    started = os.listdir(tables)
    if killed:
        first.process.kill()
    second = apart(
        tmp_path / "second",
        *source.settings,
        f"data.cache_dir={tables.parents[1]}",
        f"hydra.run.dir={tmp_path}/second/run",
    )
    assert second.code == 0, second.err
    assert "no cache" not in second.out + second.err
    assert predictions(tmp_path / "second" / "run") == source.predictions
    if not killed:
        continue_(first)
        assert first.wait().code == 0, first.err
        assert predictions(first.files[0].parent / "run") == source.predictions
    whole = [name for name in os.listdir(tables) if name[0] != "."]
    assert sorted(Path(name).suffix for name in whole) == [".npy", ".npz"]
    assert sorted(os.listdir(tables)) == sorted(whole + (started if killed else []))  # removed after a day
    memos = os.listdir(tables.parent / "memos")
    assert not [name for name in memos if name.startswith(".")]


@pytest.mark.parametrize("batch", [7, pytest.param(12, marks=pytest.mark.slow)])
def test_sigusr1_ends_a_run_with_a_checkpoint(batch: int, tmp_path: Path) -> None:
    run, end = tmp_path / "run", ending("on_train_batch_start", batch, "SIGUSR1", tmp_path / "once")
    first = apart(tmp_path, *SETTINGS, *end, f"hydra.run.dir={run}")
    assert first.code == 138, first.err
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == batch


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path: Path) -> None:
    run, once = tmp_path / "run", tmp_path / "once"
    long = {"_target_": "tests.interruptions.LongBatch", "batch": 6, "once": once}
    settings = [f"+callbacks.long.{name}={value}" for name, value in long.items()]
    command = Command(tmp_path, *SETTINGS, *settings, f"hydra.run.dir={run}")
    command.wait_for(once.exists)
    assert command.process.pid is not None
    for _ in range(2):  # one Ctrl-C may arrive twice through two launchers
        os.kill(command.process.pid, signal.SIGINT)
        time.sleep(0.1)
    time.sleep(INSIST + 2)  # from when the first was handled
    assert command.process.is_alive()
    os.kill(command.process.pid, signal.SIGINT)
    ended = command.wait(20)
    assert ended.code == 130, ended.err
    assert f"resume={run}" in ended.err
    assert "Traceback" not in ended.err
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4  # of the end of the first epoch


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (clock == CLOCK_REALTIME && access(getenv("CLOCK_BACK"), F_OK) == 0) now->tv_sec -= 3600;
  return result;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *out, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  out->tv_sec = now.tv_sec;
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}
"""
"""Goes back by an hour as soon as the file named by CLOCK_BACK exists."""


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, whole: Path) -> None:
    """During a run and before it is resumed from checkpoints that are then in the future."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("needs a C compiler")
    (tmp_path / "clock.c").write_text(CLOCK)
    library, back = tmp_path / "clock.so", tmp_path / "back"
    build = [compiler, "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"]
    subprocess.run(build, check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "CLOCK_BACK": str(back)}

    def train(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "train.py"), *overrides]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)

    run = tmp_path / "run"
    jump = ending("on_train_batch_start", 3, "SIGCONT", back)
    end = ending("on_train_batch_start", 10, "SIGTERM", tmp_path / "once")
    first = train(*SETTINGS, *jump, *end, "callbacks.last.every_minutes=1e-6", f"hydra.run.dir={run}")
    assert first.returncode == 143, first.stderr
    second = train(*resumed(run))
    assert second.returncode == 0, second.stderr
    times = [line[:19] for line in (run / "train.log").read_text().splitlines()]
    assert times != sorted(times)
    assert_same(run, outcome(whole))
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["train/seconds"] < 600
    assert metrics["train/images_per_second"] > 0
    assert all(float(row["train/images_per_second"]) > 0 for row in table(run / "metrics.csv"))
