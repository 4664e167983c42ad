"""One rank of a job: those that torchrun or srun started (`lead`, `follow`) and those of `launch.fan_out` (`main`)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fer_lightning.distributed.launch import TRUST
from fer_lightning.distributed.signals import end_with_parent, ignore_at_exit, interrupts
from fer_lightning.errors import UserError

log = logging.getLogger(__name__)

GRACE = 30.0
"""Seconds within which torchrun ends the ranks that a failed one left behind."""

_led = False
"""Whether rank 0 has already contacted the other ranks, or tried to."""


def lead(settings: Mapping[str, Any], run_dir: Path) -> dict[str, float | str]:
    """Run a job as rank 0, with the other ranks that torchrun or srun started; returns its metrics.json.

    Raises:
        UserError: another machine does not see this run folder, or a rank is gone.
    """
    global _led
    from fer_lightning.distributed import ranks
    from fer_lightning.training.job import run

    _led = True
    ranks.connect()
    end_with_parent()
    # The name of the folder alone does not show that two machines see the same one.
    with tempfile.NamedTemporaryFile(dir=run_dir, prefix=".seen-") as mark:
        ranks.broadcast({"settings": dict(settings), "run_dir": str(run_dir), "mark": Path(mark.name).name})
        ranks.agree(None)
    try:
        return run(settings, run_dir)
    except Exception as error:
        if reason := ranks.lost_contact(error):
            raise UserError(
                f"another rank ended, and the job with it ({reason}); unless that rank printed an error, resume from "
                f"the last checkpoint with `python train.py resume={run_dir}`"
            ) from error
        raise


def dismiss(code: int) -> None:
    """End the other ranks with this exit code if they still wait for `lead`: there is nothing to run."""
    from fer_lightning.distributed import ranks

    with suppress(UserError):  # they cannot be reached
        if not _led and ranks.started_outside():
            ranks.connect()
            ranks.broadcast(code)
            ranks.disconnect()


def follow() -> dict[str, float | str]:
    """Run the job that rank 0 sends.

    Raises:
        SystemExit: there is nothing to run; rank 0 has reported why.
    """
    from fer_lightning.distributed import ranks
    from fer_lightning.training.job import run

    started = ranks.started_outside()
    assert started is not None
    try:
        ranks.connect()
        job = ranks.broadcast(None)
        if isinstance(job, int):
            sys.exit(job)
        run_dir = Path(job["run_dir"])
        end_with_parent()
        ranks.agree(_unshared(run_dir, job["mark"]))
        log_to(run_dir / f"rank{started.rank}.log", console=False)
        return run(job["settings"], run_dir)
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
    """The error if this machine sees another run folder or cannot write to it, or None."""
    if (run_dir / mark).exists() and os.access(run_dir, os.W_OK):
        return None
    why = "not writable" if (run_dir / mark).exists() else "not the first machine's folder"
    return UserError(
        f"{run_dir} is {why} here: choose one on a file system that all machines share, with hydra.run.dir=<folder>"
    )


def main() -> None:
    """Run one rank of a job that `fan_out` started; `fan_out` reports its errors."""
    run_dir, rank = Path(sys.argv[1]), os.environ["RANK"]
    end_with_parent()
    log_to(run_dir / f"rank{rank}.log", console=rank == "0")
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(_run)(run_dir)
    except SystemExit as error:
        _leave(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        log.exception("")
        _leave(1)
    ignore_at_exit()


def _run(run_dir: Path) -> None:
    from fer_lightning.distributed import ranks
    from fer_lightning.runs.folder import load_settings
    from fer_lightning.training.job import run

    try:
        run(load_settings(run_dir) | {"trust": os.environ.get(TRUST) == "1"}, run_dir)
    except BaseException as error:
        if isinstance(error, ranks.FailedElsewhere) or ranks.lost_contact(error):
            # Until torchrun ends this rank: if it exited by itself, it might be reported in place of the cause.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if not interrupts.received:
                time.sleep(GRACE)
        raise


def log_to(path: Path, *, console: bool) -> None:
    """Log as Hydra's jobs do: everything to a file, warnings to the console as well."""
    file, screen = logging.FileHandler(path), logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    screen.addFilter(lambda record: record.levelno < logging.ERROR)  # the parent process prints the error that matters
    logging.basicConfig(
        handlers=[file, screen] if console else [file],
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    logging.captureWarnings(True)


def _leave(code: int) -> NoReturn:
    """Exit without tearing down the process group, which would wait for ranks that are gone."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
