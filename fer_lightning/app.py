"""The training command: compose the config, run the job, turn what users can mend into one line.

Everything heavy is imported inside `job`, so that help and config errors answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fer_lightning import schema
from fer_lightning.errors import UserError
from fer_lightning.messages import one_line

HERE = Path(__file__).parent
CONF = next(folder for folder in (HERE / "conf", HERE.parent / "conf") if folder.is_dir())
"""Hydra's groups: inside the package in a wheel, beside it in a checkout."""

TRACEBACK = "HYDRA_FULL_ERROR"
"""Hydra's own switch: set to 1, errors come with their traceback."""
_wants_traceback = os.environ.get(TRACEBACK) == "1"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float | None:
    """One job; returns the monitored metric at the best checkpoint, which sweepers optimise."""
    from fer_lightning.run import run

    try:
        return run(cfg)[cfg.monitor.metric]  # type: ignore[return-value]
    except UserError as error:
        logging.getLogger(__name__).info("error: %s", error)  # into train.log
        if HydraConfig.get().mode is RunMode.MULTIRUN or _wants_traceback:
            raise
        _fail(str(error))  # past Hydra, which would add a line of its own


def main() -> None:
    """Entry point of `train.py` and `python -m fer_lightning.app`; exits with code 1 and one line on a user's error."""
    schema.register()
    os.environ[TRACEBACK] = "1"  # Hydra would print its errors itself, in several lines
    try:
        job()
    except (UserError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        message = one_line(error, CONF)
        if _wants_traceback or message is None:
            raise
        _fail(message)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
