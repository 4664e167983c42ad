"""SLURM's warning that a job's time is nearly up, and putting the job back into the queue."""

from __future__ import annotations

import logging
import os
import signal
import subprocess

log = logging.getLogger(__name__)


def requeue_if_warned(signum: int) -> None:
    """Put this SLURM job back into the queue after SIGUSR1, the signal that `--signal=USR1@90` sends before the end.

    After SIGTERM nothing is done: SLURM requeues what it preempts by itself, and what a user cancels shall not return.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if signum != getattr(signal, "SIGUSR1", None) or job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("SLURM job %s could not be put back into the queue: %s", job, getattr(error, "stderr", error))
