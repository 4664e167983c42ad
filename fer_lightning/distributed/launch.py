"""One job on several devices of this machine: one torchrun, whose ranks all read the job's own saved config.

Lightning would start rank k by running this command line again, sweep and all: under a sweeper each rank would train
its own hyperparameters. Here a rank is `python -m fer_lightning.training.worker <run folder>` and nothing else.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fer_lightning.distributed.signals import SIGNALS, Interrupted
from fer_lightning.errors import UserError


def fan_out(run_dir: Path, processes: int) -> None:
    """Run the job of a run folder in several processes and wait for them.

    A signal to this process reaches every rank; when one rank fails the others are ended; when this process dies they
    end themselves.

    Args:
        run_dir: holds the config.yaml that every rank runs.
        processes: how many ranks.

    Raises:
        UserError: a rank raised one, or was killed.
        RankError: a rank failed otherwise.
        Interrupted: a signal ended the job.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # it tells every signal it passes on
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // processes))
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    with (
        tempfile.TemporaryDirectory(prefix="fer-lightning-") as scratch,
        _environment({"OMP_NUM_THREADS": threads, "PYTHONPATH": path}),
        _signals() as received,
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # a free port
            local_addr="localhost",  # a laptop's own name need not resolve
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "fer_lightning.training.worker", str(run_dir))
        except SignalException as error:
            raise Interrupted(received[0] if received else int(error.sigval)) from None
        except ChildFailedError as error:
            raise _first_failure(error.failures, run_dir) from None


class RankError(Exception):
    """A rank met a defect; the message holds its traceback, and there is nothing to add."""


def _first_failure(failures: Mapping[int, Any], run_dir: Path) -> BaseException:
    """What the first failing rank met; the others only lost sight of it."""
    facts = {rank: _facts(failure) for rank, failure in failures.items()}

    def when(rank: int) -> float:
        """One that was killed left no time; one that torchrun or another's failure ended is not the first."""
        killed = failures[rank].exitcode < 0 and failures[rank].exitcode != -signal.SIGTERM
        return float(facts[rank].get("time", 0.0 if killed else math.inf))

    rank = min(facts, key=when)
    failure, fact = failures[rank], facts[rank]
    if "user_error" in fact:
        return UserError(fact["user_error"])
    if "traceback" in fact:
        return RankError(f"rank {rank} failed; its log is {run_dir}/rank{rank}.log\n{fact['traceback']}")
    if failure.exitcode == 1:  # it has told why
        return UserError(f"rank {rank} failed; its log is {run_dir}/rank{rank}.log")
    if failure.exitcode > 128 and failure.exitcode - 128 in SIGNALS:  # it was asked to end, and did so in good order
        return Interrupted(failure.exitcode - 128)
    how = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit code {failure.exitcode}"
    reason = ", as the system does when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
    return UserError(
        f"rank {rank} was ended by {how}{reason}, and the job with it; go on from its last checkpoint with "
        f"`python train.py resume={run_dir}`"
    )


def _facts(failure: Any) -> dict[str, Any]:
    message = failure.error_file_data.get("message") if isinstance(failure.error_file_data, dict) else None
    facts: dict[str, Any] = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    return facts


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Puts back the handlers that torchrun replaces, and has it treat SIGUSR1 as the request to end that it is.

    Yields:
        A list that will hold a signal torchrun itself does not know of.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    received: list[int] = []

    def end(signum: int, frame: Any) -> None:
        received.append(signum)
        os.kill(os.getpid(), signal.SIGTERM)

    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
