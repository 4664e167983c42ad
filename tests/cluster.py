"""SLURM on this machine: one node, started without systemd, with its own key, socket and ports.

`python -m tests.cluster <command>` runs a command with such a cluster: `python -m tests.cluster sinfo`, or `… bash`.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
REQUEUE_DELAY = 5
"""Seconds that a requeued job waits; SLURM's default is 120."""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_delay}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{node} NodeAddr=127.0.0.1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=sudden Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""

SACCT = """#!{python}
# What submitit asks of sacct, answered by scontrol: this cluster has no accounting.
import re, subprocess, sys
print("JobID|State|NodeList")
for asked, job in zip(sys.argv, sys.argv[1:]):
    if asked != "-j":
        continue
    shown = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True).stdout
    for line in shown.splitlines():
        facts = dict(re.findall(r"(\\w+)=(\\S*)", line))
        if "ArrayTaskId" in facts:
            facts["JobId"] = facts["ArrayJobId"] + "_" + facts["ArrayTaskId"]
        print(facts["JobId"], facts["JobState"], facts.get("NodeList", ""), sep="|")
"""


def missing() -> str | None:
    """The reason why no cluster can be started here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "SLURM's daemons are started as root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)" if absent else None


def skip(reason: str) -> NoReturn:
    """Skip a test, or fail it if the environment variable CLUSTER is "required"."""
    import pytest

    if os.environ.get("CLUSTER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster in a new folder.

    Its partitions are `main`, and `low` and `sudden` (without a grace time), which `high` preempts.

    Yields:
        The environment variables for SLURM's commands.
    """
    folder.mkdir(parents=True)
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach
    (controller_port, node_port) = _free_ports(2)
    node = subprocess.run(["slurmd", "-C"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    match = re.match(r"NodeName=(\S+)", node)
    assert match, node
    settings = {
        "folder": folder,
        "host": match[1],
        "node": node,
        "controller_port": controller_port,
        "node_port": node_port,
        "requeue_delay": REQUEUE_DELAY,
    }
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))
    sacct = folder / "bin" / "sacct"
    sacct.write_text(SACCT.format(python=sys.executable))
    sacct.chmod(0o755)
    added = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
    environment = os.environ | added
    with ExitStack() as stack:
        stack.enter_context(_daemon(munged, folder, environment))
        _wait_for(lambda: (folder / "munge.socket").exists(), "munged", folder)
        stack.enter_context(_daemon(["slurmctld", "-D"], folder, environment))
        stack.enter_context(_daemon(["slurmd", "-D"], folder, environment))
        _wait_for(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environment), "sinfo", folder)
        try:
            yield added
        finally:
            _output(["scancel", "--user=root"], environment)
            _wait_for(lambda: not _output(["squeue", "-h"], environment), "the end of all jobs", folder)


@contextmanager
def _daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A daemon that ends here, or with this process should it be killed."""
    with (folder / f"{command[0]}.out").open("wb") as out:
        started = ["setpriv", "--pdeathsig=TERM", *command]
        process = subprocess.Popen(started, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _wait_for(condition: Callable[[], bool], what: str, folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in folder.glob("*.log"))
            raise TimeoutError(f"waited {seconds} s for {what}\n{logs}")
        time.sleep(0.1)


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [s.getsockname()[1] for s in sockets]


def main() -> int:
    if reason := missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, cluster(Path(folder) / "cluster") as added:
        return subprocess.run(sys.argv[1:] or ["sinfo"], env=os.environ | added, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
