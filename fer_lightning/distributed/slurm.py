"""A SLURM job: its name, and requeueing it after a signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

from fer_lightning.errors import UserError


def job_name() -> str | None:
    """The id of this process's job as in SLURM's commands: 12, or 12_3 in an array; None outside of SLURM."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # SLURM_JOB_ID may be that of the whole array
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def job_folder() -> str:
    """The name of the job's run folder.

    Raises:
        UserError: this process does not belong to a job.
    """
    name = job_name()
    if name is None:
        raise UserError(
            "accelerator=slurm: SLURM_JOB_ID is not set; start it in a SLURM job, with sbatch or srun (and leave it "
            "out with hydra/launcher=submitit_slurm, which submits the jobs)"
        )
    return name


def launched_by_submitit() -> bool:
    """Whether submitit, Hydra's launcher for SLURM, runs this job; its tasks are then the job's ranks."""
    return "SUBMITIT_EXECUTOR" in os.environ


def requeue_if_due(signum: int) -> None:
    """Requeue the job if a signal means that it is to be resumed later.

    That is SIGUSR1, the warning of `--signal=USR1@90` that the time limit is near, and SIGTERM if the job is preempted:
    SLURM itself requeues only jobs that outlast their grace time. A job that a user cancels is not requeued. SLURM ends
    the remaining processes of a job that it requeues.
    """
    name = job_name()
    if name is None or (signum != getattr(signal, "SIGUSR1", None) and not _is_preempted(name)):
        return
    # With `srun --kill-on-bad-exit` the first rank that exits ends this one with SIGTERM.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _scontrol("requeue", name)
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        print(f"SLURM does not requeue job {name} ({reason}): submit jobs with --requeue", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_preempted(name: str) -> bool:
    try:
        description = _scontrol("show", "job", "--oneliner", name)
    except (OSError, subprocess.SubprocessError):
        return False
    facts = dict(re.findall(r"\b(PreemptTime|StartTime)=(\d\S*)", description))  # ISO times compare as strings
    return bool(facts.get("PreemptTime", "") >= facts.get("StartTime", "~"))


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
