"""What the scripts of this folder share: a deadline, runs that end at it and resume, and files in parts."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fer_lightning.models.network import FaceNetwork
from fer_lightning.runs.folder import finished
from fer_lightning.runs.results import git_commit

ROOT = Path(__file__).resolve().parents[2]

PART = 15 * 2**20
"""Bytes of a part of a large file."""

SAVING = 20.0
"""Seconds that a command has to save and end, before it is killed."""

SCORING = 60.0
"""Seconds kept for what follows training: scores, export, tables."""


class Call:
    """One call of a script on a borrowed machine.

    Args:
        description: of the script, which begins with its command.
    """

    def __init__(self, description: str) -> None:
        self.parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.parser.add_argument("--data", required=True, help="FER-2013, as data.path: such as the CSV of pack.py")
        self.parser.add_argument("--work", type=Path, required=True, help="folder of runs, kept from call to call")
        self.parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder of results; else $OUT")
        self.parser.add_argument("--minutes", type=float, default=9.0, help="after which runs are saved and ended")
        self.parser.add_argument("--overrides", nargs="*", default=[], help="of every run, such as precision=fp32")

    def start(self) -> argparse.Namespace:
        """Parse the arguments, start the clock and write down the machine."""
        arguments = self.parser.parse_args()
        if arguments.out is None:
            self.parser.error("--out: name a folder for the results, or set OUT")
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.work, self.out = arguments.work, Path(arguments.out)
        self.overrides: list[str] = arguments.overrides
        for folder in (self.work, self.out):
            folder.mkdir(parents=True, exist_ok=True)
        self.data = arguments.data
        self.results: dict[str, Any] = {"machine": machine(), "commit": git_commit(), "overrides": self.overrides}
        return arguments

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def note(self, **results: Any) -> None:
        """Add to the results and write them, so that a call that is cut off leaves what it has."""
        self.results |= results
        text = json.dumps(self.results, indent=1) + "\n"
        (self.out / f"{Path(sys.argv[0]).stem}.json").write_text(text)

    def train(self, folder: Path, *overrides: str) -> dict[str, Any] | None:
        """Metrics of a run, which is started or resumed if it has not finished; None if the time is up first."""
        if (metrics := finished(folder)) is None and self.left > SAVING + SCORING:
            begun = (folder / "config.yaml").exists()
            own = [f"data.path={self.data}", *overrides, *self.overrides, f"hydra.run.dir={folder}"]
            command = [sys.executable, str(ROOT / "train.py"), *([f"resume={folder}"] if begun else own)]
            self.run(command, keep=SCORING)
            metrics = finished(folder)
        return dict(metrics) if metrics is not None else None

    def run(self, command: list[str], *, keep: float = 0.0, **options: Any) -> bool:
        """Run a command, ended with all that it started by SIGTERM shortly before the deadline, or `keep` seconds
        earlier; whether it succeeded."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # as that of other packages
        environment = os.environ | {"PYTHONPATH": path}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **options)
        try:
            process.wait(max(0.0, self.left - SAVING - keep))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(SAVING)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return False
        return process.returncode == 0


def cli(*arguments: str) -> list[str]:
    """A command of `fer-lightning`, which need not be installed."""
    return [sys.executable, "-c", "from fer_lightning.cli import app; app()", *arguments]


def machine() -> dict[str, Any]:
    """The device, and versions."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}


def matrix_rate(n: int = 8192, rounds: int = 30) -> float:
    """Operations per second of the device in a product of bf16 matrices, the median of some."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n = n if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / statistics.median(seconds)


def operations_per_image(network: FaceNetwork, size: int) -> int:
    """Of a training step on one image of `size` pixels: forward and backward, two for a multiplication and addition."""
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(2, 1, size, size)).sum().backward()
    return int(counter.get_total_flops() // 2)


def in_parts(file: Path, out: Path) -> list[str]:
    """Copy a file as parts NAME.00, NAME.01 …, which `cat` joins; return their names and the digest of the whole."""
    data = file.read_bytes()
    names = []
    for number, start in enumerate(range(0, len(data), PART)):
        names.append(f"{file.name}.{number:02d}" if len(data) > PART else file.name)
        (out / names[-1]).write_bytes(data[start : start + PART])
    return [*names, f"sha256 {hashlib.sha256(data).hexdigest()}"]
