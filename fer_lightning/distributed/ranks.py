"""The ranks of one job: which one this process is, and how they agree.

Whatever starts them (this project, torchrun, srun) sets environment variables; SLURM's are translated to torchrun's.
Ranks exchange tensors and JSON only, never pickles.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from fer_lightning.errors import UserError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for another one: rank 0 may have to parse the data meanwhile."""


class Ranks(NamedTuple):
    """The position of this process among the ranks of a job.

    Attributes:
        rank: index among all processes.
        local_rank: index among the processes of this machine.
        world: number of all processes.
        local_world: number of processes on this machine.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    local_world: int = 1

    @property
    def nodes(self) -> int:
        return self.world // self.local_world


class FailedElsewhere(SystemExit):
    """Another rank met the error and reports it; this one only exits."""


def started_outside(environment: MutableMapping[str, str] = os.environ) -> Ranks | None:
    """This process's position among the ranks that torchrun or srun started, or None for a single process.

    Raises:
        UserError: the ranks are not spread evenly over the machines.
    """
    if "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        _adopt_slurm(environment)
    if int(environment.get("WORLD_SIZE", 1)) < 2 or "RANK" not in environment:
        return None
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE={environment['WORLD_SIZE']} without {', '.join(missing)}: start ranks with torchrun"
        )
    ranks = Ranks(*(int(environment[name]) for name in names))
    if ranks.world % ranks.local_world:
        raise UserError(f"{ranks.world} ranks with {ranks.local_world} here: every machine needs the same number")
    return ranks


def _adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Set torchrun's variables from srun's."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    per_node = environment["SLURM_STEP_TASKS_PER_NODE"]  # "2(x3)", or "2,1" where uneven
    if "," in per_node:
        raise UserError(
            f"SLURM_STEP_TASKS_PER_NODE={per_node}: every machine needs the same number; use --ntasks-per-node"
        )
    step = f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}"
    here = int(per_node.partition("(")[0])
    cpus = environment.get("SLURM_CPUS_PER_TASK") or int(environment.get("SLURM_CPUS_ON_NODE", here)) // here
    variables = {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(here),
        "GROUP_RANK": environment["SLURM_NODEID"],
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(environment["SLURM_STEP_NODELIST"]),
        # Derived from the job, so that every rank finds the same port; below the range of ephemeral ports.
        "MASTER_PORT": environment.get("MASTER_PORT", str(20_000 + zlib.crc32(step.encode()) % 10_000)),
    }
    environment.update(variables)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, int(cpus))))  # tasks of a step may see all cores


def connect() -> None:
    """Join the process group, whose CPU backend carries what ranks agree on.

    Raises:
        UserError: the other ranks cannot be reached.
    """
    if dist.is_initialized():
        return
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():  # set after torch was loaded
        torch.set_num_threads(int(threads))
    if int(os.environ["WORLD_SIZE"]) > int(os.environ["LOCAL_WORLD_SIZE"]) and (name := _interface()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} does not reach the other ranks ({reason}): open the "
            "ports between the machines, and name the network interface they share with GLOO_SOCKET_IFNAME=<name>"
        ) from error


def _interface() -> str | None:
    """The network interface that leads to rank 0, where the host name resolves to 127.0.1.1 as on Debian.

    gloo would otherwise give the other ranks that address.
    """
    try:
        if not socket.gethostbyname(socket.gethostname()).startswith("127.") or sys.platform != "linux":
            return None
    except OSError:  # the name does not resolve
        pass
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))  # sends nothing
        except OSError:
            return None
        own = asking.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                answer = fcntl.ioctl(asking, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                if socket.inet_ntoa(answer[20:24]) == own and not own.startswith("127."):
                    return name
    return None


def lost_contact(error: BaseException) -> str | None:
    """The reason if an error means that the connection to another rank broke, which then reports the cause; or None."""
    if not isinstance(error, RuntimeError):
        return None
    match = re.search(r"Connection (closed|reset|refused)[^.]*[.\d]*(\]:\d+)?|Broken pipe|Timed out[^.]*", str(error))
    return match[0] if match else type(error).__name__ if isinstance(error, dist.DistError) else None


def disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank; plain values only, sent as JSON."""
    return everyones(value if is_first() else None)[0] if world() > 1 else value


def highest(*values: int) -> list[int]:
    """The element-wise maximum of all ranks' values, on every rank."""
    maxima: list[int] = gathered(torch.tensor(values)).amax(0).tolist()
    return maxima


def gathered(values: torch.Tensor) -> torch.Tensor:
    """Every rank's values, which have the same shape: (world, *shape), on the CPU."""
    mine = values.detach().cpu()
    if world() == 1:
        return mine[None]
    parts = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(parts, mine)
    return torch.stack(parts)


def everyones(value: Any) -> list[Any]:
    """Every rank's value, on every rank; plain values only, sent as JSON."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [int(size) for size in gathered(torch.tensor([len(text)]))]
    texts = gathered(torch.nn.functional.pad(text, (0, max(sizes) - len(text))))
    return [json.loads(bytes(row[:size].tolist())) for row, size in zip(texts, sizes, strict=True)]


def first_alone(work: Callable[[], T]) -> T:
    """Do the work on rank 0 first and then on the other ranks, which find its files.

    Raises:
        UserError: on rank 0, the error of the first rank that failed: a file may be missing on one machine only.
        FailedElsewhere: on the other ranks.
    """
    for my_turn in (is_first(), not is_first()):
        with agreeing():
            if my_turn:
                result = work()
    return result


@contextmanager
def agreeing() -> Iterator[None]:
    """A block that every rank runs by itself; errors in it are raised as by `agree`."""
    problem: BaseException | None = None
    try:
        yield
    except BaseException as error:
        problem = error
    agree(problem)


def agree(problem: BaseException | None) -> None:
    """Return if no rank has met a problem.

    Raises:
        UserError: on rank 0, the first one that any rank met; other errors are raised on the rank that met them.
        FailedElsewhere: on the other ranks.
    """
    message = str(problem) if isinstance(problem, UserError) else None
    reports = everyones([problem is not None, message, socket.gethostname()])
    if not any(failed for failed, _, _ in reports):
        return
    if problem and (message is None or is_first()):
        raise problem
    for rank, (_, message, host) in enumerate(reports):
        if message is not None and is_first():
            raise UserError(f"rank {rank} on {host}: {message}")
    raise FailedElsewhere(1)
