"""One job on several devices of this machine: one torchrun, whose ranks all read the job's own saved config.

Lightning would start rank k by running this command line again, sweep and all: under a sweeper each rank would train
its own hyperparameters. Here a rank is `python -m fer_lightning.launch <run folder>` and nothing else.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from fer_lightning.errors import UserError
from fer_lightning.interrupts import SIGNALS, Interrupted, ignore_at_exit

log = logging.getLogger(__name__)

PARENT_CHECK = 0.5
"""Seconds between a rank's looks at whether its parent still lives."""


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
    package = str(Path(__file__).resolve().parents[1])
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
            elastic_launch(config, sys.executable)("-m", "fer_lightning.launch", str(run_dir))
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


def end_with_parent() -> None:
    """Ask this process to end in good order as soon as its parent is gone: nothing may train on unseen."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def lead(settings: Mapping[str, Any], run_dir: Path) -> dict[str, float | str]:
    """Run a job with the other ranks, which torchrun or srun started beside this one; returns its metrics.json.

    Raises:
        UserError: another machine does not have this run folder, or a rank is gone.
    """
    global _led
    from fer_lightning import ranks
    from fer_lightning.run import run

    _led = True
    ranks.connect()
    end_with_parent()
    with tempfile.NamedTemporaryFile(dir=run_dir, prefix=".seen-") as mark:  # a folder of that name may be another one
        ranks.broadcast({"settings": dict(settings), "run_dir": str(run_dir), "mark": Path(mark.name).name})
        ranks.agree(None)
    try:
        return run(settings, run_dir)
    except Exception as error:
        if why := ranks.lost_contact(error):
            raise UserError(
                f"another rank ended, and the job with it ({why}); unless it has told why, go on from the last "
                f"checkpoint with `python train.py resume={run_dir}`"
            ) from error
        raise


def dismiss(code: int) -> None:
    """Let the other ranks go, if they wait still, with this exit code: there is nothing to run."""
    from fer_lightning import ranks

    if not _led and ranks.started_outside():
        with suppress(UserError):  # they cannot be reached
            ranks.connect()
            ranks.broadcast(code)
            ranks.disconnect()


_led = False
"""Whether the others have been talked to, or cannot be."""


def follow() -> dict[str, float | str]:
    """Run what the first rank says.

    Raises:
        SystemExit: there is nothing to run, and it has told why.
    """
    from fer_lightning import ranks
    from fer_lightning.run import run

    place = ranks.started_outside()
    assert place is not None
    try:
        ranks.connect()
        order = ranks.broadcast(None)
        if isinstance(order, int):
            sys.exit(order)
        run_dir = Path(order["run_dir"])
        end_with_parent()
        ranks.agree(_unshared(run_dir, order["mark"]))
        log_to(run_dir / f"rank{place.rank}.log", console=False)
        return run(order["settings"], run_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(1)
    except Exception as error:
        if logging.root.handlers:
            log.exception("")
        if not ranks.lost_contact(error):
            traceback.print_exc()
        _leave(1)


def _unshared(run_dir: Path, mark: str) -> UserError | None:
    """What is wrong with the run folder as this machine sees it, or None."""
    if (run_dir / mark).exists() and os.access(run_dir, os.W_OK):
        return None
    why = "not writable" if (run_dir / mark).exists() else "not the first machine's folder"
    return UserError(
        f"{run_dir} is {why} here: choose one on a file system that all machines share, with hydra.run.dir=<folder>"
    )


def main() -> None:
    """One rank of a job that `fan_out` started; errors go to the rank's log and to the parent, which tells them."""
    run_dir = Path(sys.argv[1])
    end_with_parent()
    log_to(run_dir / f"rank{os.environ['RANK']}.log", console=os.environ["RANK"] == "0")
    from fer_lightning.run import run
    from fer_lightning.runfolder import load_settings

    try:
        run(load_settings(run_dir), run_dir)
        ignore_at_exit()
    except SystemExit as error:
        _leave(error.code if isinstance(error.code, int) else 1)
    except BaseException as error:
        _leave(1, error)


def log_to(path: Path, *, console: bool) -> None:
    """Log as Hydra's jobs do: everything to a file, warnings to the console as well."""
    file, screen = logging.FileHandler(path), logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    screen.addFilter(lambda record: record.levelno < logging.ERROR)  # who started the ranks tells which error matters
    logging.basicConfig(
        handlers=[file, screen] if console else [file],
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    logging.captureWarnings(True)


def _leave(code: int, error: BaseException | None = None) -> NoReturn:
    """End at once: other ranks wait for this one in vain, and must not be the first to complain."""
    import json

    if error is not None:
        logging.getLogger(__name__).error("", exc_info=error)
        facts = {"traceback": "".join(traceback.format_exception(error)), "time": time.monotonic()}
        if isinstance(error, UserError):
            facts["user_error"] = str(error)
        facts["timestamp"] = str(int(time.time()))
        message = {"message": f"{type(error).__name__}: {error}", "extraInfo": facts}
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            Path(path).write_text(json.dumps({"message": message}))
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
