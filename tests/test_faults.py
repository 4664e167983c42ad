"""Faults of what surrounds a run: disks, networks, caches, clocks, impatient people. docs/reliability.md lists them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Command, apart
from tests.test_resume import SETTINGS, assert_same, ending, kept, table
from tests.test_wandb import records
from tests.wandb_server import WandbServer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that met no fault."""
    folder = tmp_path_factory.mktemp("whole")
    ended = apart(folder, *SETTINGS, f"hydra.run.dir={folder}/run")
    assert ended.code == 0, ended.err
    return folder / "run"


def halted(folder: Path, *overrides: str, hook: str = "on_train_batch_start", n: int = 6) -> Command:
    """The training command, stopped at a place until `go_on`."""
    once = folder / "halted"
    command = Command(folder, *overrides, *ending(hook, n, "SIGSTOP", once))
    command.wait_for(once.exists)
    return command


def go_on(command: Command) -> None:
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGCONT)


def children(command: Command, name: str) -> list[int]:
    """Processes that the command has started, by a part of their command line."""
    tasks = Path(f"/proc/{command.process.pid}/task").iterdir()
    started = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in started if name in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server that runs are sent to."""
    server = WandbServer()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    yield server
    server.go_away()


WANDB = (*(s for s in SETTINGS if not s.startswith("logger=")), "logger=[csv,wandb]")


def logged(run: Path) -> list[float]:
    """The macro-F1 of each epoch in the files that W&B keeps in a run folder."""
    rows = [record.history.item for record in records(run) if record.HasField("history")]
    values = [{item.key or ".".join(item.nested_key): item.value_json for item in row} for row in rows]
    return [json.loads(row["val/f1_macro"]) for row in values if "val/f1_macro" in row]


@pytest.mark.parametrize(
    "fault", ["server gone", *(pytest.param(f, marks=pytest.mark.slow) for f in ("server hangs", "service killed"))]
)
def test_wandb_that_fails_in_mid_run_costs_one_line_and_a_few_seconds(
    fault: str, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """The run goes on to the same results, and what it logged is in its folder, from where it can be sent."""
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
    go_on(command)
    ended = command.wait()
    assert ended.code == 0, ended.err
    assert time.monotonic() - since < 20
    (line,) = [line for line in (ended.out + ended.err).splitlines() if "`wandb sync --" in line]
    (folder,) = run.glob("wandb/run-*")
    assert f"`wandb sync --include-online {folder}`" in line
    assert "Traceback" not in ended.err
    assert_same(run, kept(whole))
    if fault == "service killed":
        return
    epochs = [float(row["val/f1_macro"]) for row in table(run / "metrics.csv")]
    assert logged(run) == pytest.approx(epochs)
    assert len(list(folder.glob("files/media/table/test/confusion_matrix*"))) == 1
    assert server.history == []
    if fault == "server hangs":
        later = WandbServer()
        monkeypatch.setenv("WANDB_BASE_URL", later.url)
        command_told = line.split("`")[1].split()
        sent = subprocess.run([sys.executable, "-m", *command_told], cwd=tmp_path, capture_output=True, text=True)
        assert sent.returncode == 0, sent.stderr
        assert [row["val/f1_macro"] for row in later.history if "val/f1_macro" in row] == pytest.approx(epochs)
        later.go_away()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"only root may mount: {mount.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, pages: int = 0) -> Path:
    """Take all room but some pages of 4 KiB."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(16 << 20))
    os.truncate(filler, filler.stat().st_size - 4096 * pages)
    return filler


def test_a_full_disk_during_the_report(disk: Path, tmp_path: Path, whole: Path) -> None:
    """Once there is room, the report is written without training again, as if nothing had been."""
    run = disk / "run"
    command = halted(tmp_path, *SETTINGS, f"hydra.run.dir={run}", hook="on_test_start", n=1)
    trained = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    filler = fill(disk, pages=16)
    go_on(command)
    ended = command.wait()
    assert ended.code == 1
    assert f"error: {run}/report/" in ended.err
    assert ": No space left on device; make room, then go on with" in ended.err
    assert ended.err.count("\n") == 1, ended.err
    filler.unlink()
    report = {path.name: path for path in (whole / "report").iterdir() if path.suffix != ".html"}  # that has the time
    written = {path.name: path for path in (run / "report").iterdir()}
    assert 0 < len(written) < len(report)
    assert all(path.read_bytes() == report[name].read_bytes() for name, path in written.items())
    assert not (run / "metrics.json").exists()
    second = apart(tmp_path, f"resume={run}")
    assert second.code == 0, second.err
    assert "epoch" not in second.out
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained
    assert_same(run, kept(whole))
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
def test_a_full_disk_in_training(settings: list[str], file: str, disk: Path, tmp_path: Path, whole: Path) -> None:
    """Whatever finds it full first, the run ends in one line and goes on once there is room."""
    run = disk / "run"
    command = halted(tmp_path, *SETTINGS, *settings, f"hydra.run.dir={run}")
    filler = fill(disk)
    go_on(command)
    ended = command.wait()
    assert ended.code == 1
    assert ended.err.startswith(f"error: {run}/{file}: ")
    assert "No space left on device" in ended.err
    assert f"resume={run}`" in ended.err
    assert ended.err.count("\n") == 1, ended.err
    filler.unlink()
    second = apart(tmp_path, f"resume={run}")
    assert second.code == 0, second.err
    if "logger=none" not in settings:
        assert_same(run, kept(whole))
