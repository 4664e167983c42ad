"""Two machines: two network namespaces of this one, each with its own address, and a torchrun in each.

Neither can resolve the other's host name, as with 127.0.1.1 in /etc/hosts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cluster import skip
from tests.distributed.test_slurm import SMALL, on_this_machine
from tests.processes import REPOSITORY
from tests.resuming import assert_same, outcome, resumed, waiting, without

pytestmark = [pytest.mark.slow, pytest.mark.ddp]

ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29500
"""Free in a new namespace."""


class Machine(NamedTuple):
    """A network namespace: its name, address and number."""

    name: str
    address: str
    number: int

    def start(self, folder: Path, *settings: str, meeting: str = "static", hidden: Path | None = None) -> Torchrun:
        """Start this machine's part of a job with one process on each machine.

        Args:
            folder: for the output.
            settings: overrides of the job.
            meeting: rendezvous of the two torchruns, "static" or "c10d".
            hidden: a folder that this machine replaces by an empty one.
        """
        arguments = {
            "static": [f"--node-rank={self.number}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}"],
            "c10d": [
                *("--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", f"--local-addr={self.address}"),
                f"--rdzv-conf=is_host={'false' if self.number else 'true'}",
            ],
        }[meeting]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *arguments]
        command = [*torchrun, str(REPOSITORY / "train.py"), "trainer.devices=auto", *settings]
        if hidden:
            command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden), *command]
        return Torchrun(folder / f"machine{self.number}", ["ip", "netns", "exec", self.name, *command])

    def lose(self) -> None:
        """Kill all its processes."""
        for process in _ip("netns", "pids", self.name).split():
            os.kill(int(process), signal.SIGKILL)


class Torchrun:
    """A torchrun of one machine, and the output of it and its ranks."""

    def __init__(self, output: Path, command: list[str]) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        self._output = output
        with output.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=output.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )

    @property
    def out(self) -> str:
        return self._output.read_text(errors="replace")

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Machine, Machine]]:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        skip("network namespaces need root on Linux")
    if absent := [program for program in ("ip", "unshare") if shutil.which(program) is None]:
        skip(f"not installed: {', '.join(absent)} (Debian: apt-get install iproute2 util-linux)")
    here = [Machine(f"fer{os.getpid()}-{number}", address, number) for number, address in enumerate(ADDRESSES)]
    links = [f"fer{os.getpid() % 100_000}v{number}" for number in (0, 1)]
    try:
        for machine in here:
            _ip("netns", "add", machine.name)
        (first, second) = here
        _ip("link", "add", links[0], "netns", first.name, "type", "veth", "peer", links[1], "netns", second.name)
        for machine, link in zip(here, links, strict=True):
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", link)
            for name in ("lo", link):
                _ip("-n", machine.name, "link", "set", name, "up")
        yield first, second
    except subprocess.CalledProcessError as error:
        skip(f"no network namespaces here: {error.stderr}")
    finally:
        for machine in here:
            if machine.name in _ip("netns", "list"):
                machine.lose()
                _ip("netns", "delete", machine.name)


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two devices of one machine."""
    return on_this_machine(tmp_path_factory.mktemp("one_machine") / "run", 2)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("meeting", ["static", "c10d"])
def test_a_job_on_two_machines_equals_one_on_one_machine(
    meeting: str, machines: tuple[Machine, Machine], tmp_path: Path, one_machine: Path
) -> None:
    """Without a variable that names the network interface."""
    run = tmp_path / "run"
    started = [m.start(tmp_path, *SMALL, f"hydra.run.dir={run}", meeting=meeting) for m in machines]
    assert [torchrun.wait(120) for torchrun in started] == [0, 0], [torchrun.out for torchrun in started]
    assert_same(run, outcome(one_machine))  # predictions.csv among it
    assert sum(torchrun.out.count("report   ") for torchrun in started) == 1


def test_a_lost_machine_ends_the_job_which_can_be_resumed(
    machines: tuple[Machine, Machine], tmp_path: Path, one_machine: Path
) -> None:
    run, once = tmp_path / "run", tmp_path / "once"
    settings = [*SMALL, *waiting("SIGTERM", once), f"hydra.run.dir={run}"]
    first, second = (machine.start(tmp_path / "first", *settings) for machine in machines)
    end = time.monotonic() + 120
    while not once.exists():
        assert time.monotonic() < end and first.process.poll() is None, first.out
        time.sleep(0.1)
    machines[1].lose()
    assert second.wait(10) == -signal.SIGKILL
    # Rank 0 waits within a batch, as in a long one, until it gets the signal.
    for process in _ip("netns", "pids", machines[0].name).split():
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode()
        if "torch.distributed.run" not in command:
            os.kill(int(process), signal.SIGTERM)
    assert first.wait(60) == 1, first.out
    assert first.out.count("another rank ended") == 1, first.out
    started = [machine.start(tmp_path / "again", *resumed(run)) for machine in machines]
    assert [torchrun.wait(120) for torchrun in started] == [0, 0], [torchrun.out for torchrun in started]
    assert "from last.ckpt" in "".join(torchrun.out for torchrun in started)
    assert_same(run, outcome(one_machine))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.batch_size=31", "use 30 or 32"),  # detected before the ranks connect
        ("data.synthetic.n_train=0", "n_train"),  # by rank 0, when it reads the data
        ("monitor.metric=val/nothing", "no such score"),  # by every rank
    ],
)
def test_a_user_error_ends_both_machines_and_is_printed_once(
    setting: str, said: str, machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    settings = without(SMALL, setting.partition("=")[0])
    started = [m.start(tmp_path, *settings, setting, f"hydra.run.dir={tmp_path}/run") for m in machines]
    assert [torchrun.wait(60) for torchrun in started] == [1, 1], [torchrun.out for torchrun in started]
    errors = [line for torchrun in started for line in torchrun.out.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]


def test_a_run_folder_missing_on_the_second_machine_is_reported(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    (tmp_path / "local").mkdir()
    settings = [*SMALL, f"hydra.run.dir={tmp_path}/local/run"]
    started = [m.start(tmp_path, *settings, hidden=tmp_path / "local" if m.number else None) for m in machines]
    assert [torchrun.wait(60) for torchrun in started] == [1, 1], [torchrun.out for torchrun in started]
    errors = [line for torchrun in started for line in torchrun.out.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"{tmp_path}/local/run is not the first machine's folder here" in errors[0]
    assert "rank 1 on " in errors[0]
    assert "hydra.run.dir=<folder>" in errors[0]
    assert not list((tmp_path / "local" / "run").glob(".seen-*"))


def test_data_missing_on_the_second_machine_are_reported(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    settings = [s for s in SMALL if not s.startswith(("data=", "data.synthetic"))]
    settings += [f"data.path={tmp_path}/local/faces.csv", f"hydra.run.dir={tmp_path}/run"]
    pixels = " ".join(["7"] * 48 * 48)
    rows = [f"{i % 7},{pixels},{usage}" for usage in ("Training", "PublicTest", "PrivateTest") for i in range(70)]
    (tmp_path / "local" / "faces.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n")
    started = [m.start(tmp_path, *settings, hidden=tmp_path / "local" if m.number else None) for m in machines]
    assert [torchrun.wait(60) for torchrun in started] == [1, 1], [torchrun.out for torchrun in started]
    errors = [line for torchrun in started for line in torchrun.out.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "rank 1 on " in errors[0]
    assert f"{tmp_path}/local/faces.csv" in errors[0]
