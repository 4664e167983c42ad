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
from typing import Any

import pytest

from tests.processes import Command
from tests.test_resume import SETTINGS, assert_same, ending, table, uninterrupted
from tests.test_wandb import records
from tests.wandb_server import WandbServer

__all__ = ["uninterrupted"]  # a fixture


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
    fault: str, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
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
    assert_same(run, uninterrupted)
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
