"""Commands in processes of their own, forked from one that has already imported everything."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.conftest import QUICK_DPI

REPOSITORY = Path(__file__).parents[1]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["fer_lightning.training.job", "fer_lightning.app", "fer_lightning.training.worker", "matplotlib.pyplot"]
)


class Ended(NamedTuple):
    """How a command ended: its exit code, negative for a signal, and its output."""

    code: int
    out: str
    err: str


class Command:
    """The training command in a process of its own, as `python train.py <overrides>` would be."""

    def __init__(self, folder: Path, *overrides: str, cwd: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = folder / "stdout", folder / "stderr"
        arguments = (overrides, self.files, cwd or folder, dict(os.environ))
        self.process = _context.Process(target=_train, args=arguments)
        self.process.start()

    @property
    def out(self) -> str:
        return self.files[0].read_text() if self.files[0].exists() else ""

    @property
    def err(self) -> str:
        return self.files[1].read_text() if self.files[1].exists() else ""

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), f"ended with {self.process.exitcode}: {self.out}{self.err}"
            assert time.monotonic() < end, f"condition not met in {seconds} s: {self.out}{self.err}"
            time.sleep(0.05)

    def wait(self, seconds: float = 240) -> Ended:
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still alive after {seconds} s: {self.out}{self.err}")
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, self.out, self.err)


def apart(folder: Path, *overrides: str, cwd: Path | None = None) -> Ended:
    """Run the training command in a process of its own and wait for it."""
    return Command(folder, *overrides, cwd=cwd).wait()


def _train(overrides: tuple[str, ...], files: tuple[Path, Path], cwd: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in zip((sys.stdout, sys.stderr), files, strict=True):
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(handle, stream.fileno())
    os.chdir(cwd)
    from fer_lightning.app import main
    from fer_lightning.report import style

    style.DPI = QUICK_DPI
    sys.argv = [str(REPOSITORY / "train.py"), *overrides]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips them


def processes_of(folder: Path) -> list[int]:
    """Other processes that have the folder on their command line."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(folder) in command and state != "Z":
                pids.append(int(entry.name))
    return pids
