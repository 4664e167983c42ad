"""One job on several devices of this machine: one torchrun, whose ranks all read the job's own saved config.

Lightning would start rank k by running this command line again, sweep and all: under a sweeper each rank would train
with its own hyperparameters. Here a rank is `python -m fer_lightning.training.worker <run folder>` and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from fer_lightning.distributed.signals import SIGNALS, Interrupted, end_with_parent, handled
from fer_lightning.errors import UserError

TRUST = "FER_LIGHTNING_TRUST"
"""Variable in which the ranks find `trust`: 1 or 0."""

PATIENCE = 300
"""Seconds that ranks have to end after a signal. Versions of torch that do not read it give them 30."""

POLL = 0.1
"""Seconds between checks of whether a signal has arrived that torchrun has to pass on."""


def fan_out(run_dir: Path, processes: int, *, trust: bool = False) -> None:
    """Run the job of a run folder in several processes and wait for them.

    A signal to this process reaches every rank; when one rank fails the others are ended; when this process dies they
    save and end themselves.

    Args:
        run_dir: holds the config.yaml that every rank runs.
        processes: number of ranks.
        trust: whether the user trusts what the run starts from; no run folder says that of itself.

    Raises:
        UserError: a rank raised one, or was killed.
        RankError: a rank failed otherwise.
        Interrupted: a signal ended the job.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    package = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes)),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        TRUST: str(int(trust)),
    }
    # Ranks save after their batch or validation, for which torchrun would wait 30 seconds before it kills them.
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(PATIENCE))
    with tempfile.TemporaryDirectory(prefix="fer-lightning-") as scratch, handled() as interrupts:
        interrupts.deferred = True
        failure = Path(scratch, "failure.json")
        command = [sys.executable, "-m", __name__, str(processes), str(run_dir), str(failure)]
        # In a session of its own, so that Ctrl-C reaches it once and through this process only.
        torchrun = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            while torchrun.poll() is None and not interrupts.received:
                with suppress(subprocess.TimeoutExpired):
                    torchrun.wait(POLL)
            if interrupts.received:
                torchrun.terminate()
            torchrun.wait()
        finally:  # a second Ctrl-C leaves the loop at once
            torchrun.kill()
            torchrun.wait()
        if torchrun.returncode == 0:
            return
        if interrupts.received:
            raise Interrupted(interrupts.received)
        raise _error(json.loads(failure.read_text()) if failure.exists() else {}, torchrun.returncode, run_dir)


class RankError(Exception):
    """A rank failed through a defect; the message holds its traceback and is complete."""


def _error(failure: dict[str, Any], code: int, run_dir: Path) -> BaseException:
    """The error of the first rank that failed, or of torchrun itself where no rank did."""
    rank, message, code = failure.get("rank"), failure.get("message"), failure.get("exitcode", code)
    if isinstance(message, dict):  # what torch's `record` wrote
        kind, _, text = message["message"].partition(": ")
        if kind == UserError.__name__:
            return UserError(text)
        log = f"{run_dir}/rank{rank}.log"
        return RankError(f"rank {rank} failed; its log is {log}\n{message['extraInfo']['py_callstack']}")
    if code - 128 in SIGNALS:  # the rank itself was asked to end, and did so after saving
        return Interrupted(code - 128)
    who = "torchrun" if rank is None else f"rank {rank}"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    reason = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return UserError(
        f"{who} {how}{reason}, and the job with it; resume from its last checkpoint with "
        f"`python train.py resume={run_dir}`"
    )


def main() -> None:
    """Run torchrun in this process, and record which rank failed first instead of printing a traceback."""
    processes, run_dir, path = sys.argv[1:]
    end_with_parent()
    logging.disable()  # torchrun logs every signal that it passes on
    if hasattr(signal, "SIGUSR1"):  # SLURM sends it to every process of a job; torchrun does not handle it
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = [f"--nproc-per-node={processes}", f"--log-dir={Path(path).parent}"]
    try:
        # A laptop's own name need not resolve, hence localhost.
        run.main(["--standalone", "--local-addr=localhost", *options, "-m", "fer_lightning.training.worker", run_dir])
    except SignalException as error:
        sys.exit(128 + int(error.sigval))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        facts = {"rank": rank, "exitcode": failure.exitcode, "message": failure.error_file_data["message"]}
        Path(path).write_text(json.dumps(facts))
        sys.exit(1)


if __name__ == "__main__":
    main()
