"""One rank of a job: the first, which leads, those that follow it, and those that `launch.fan_out` starts."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fer_lightning.distributed.signals import end_with_parent, ignore_at_exit
from fer_lightning.errors import UserError

log = logging.getLogger(__name__)


def lead(settings: Mapping[str, Any], run_dir: Path) -> dict[str, float | str]:
    """Run a job with the other ranks, which torchrun or srun started beside this one; returns its metrics.json.

    Raises:
        UserError: another machine does not have this run folder, or a rank is gone.
    """
    global _led
    from fer_lightning.distributed import ranks
    from fer_lightning.training.job import run

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
    from fer_lightning.distributed import ranks

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
    from fer_lightning.distributed import ranks
    from fer_lightning.training.job import run

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
    from fer_lightning.runs.folder import load_settings
    from fer_lightning.training.job import run

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
