"""How a sweep names its jobs and reports their failures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fer_lightning.errors import UserError
from fer_lightning.report.files import write_atomically

SWEEP = "multirun.yaml"
"""How a sweep was started, in its folder."""

FAILURE = "failure.txt"
"""The reason, in the folder of a job that failed; removed when the job is resumed."""

FAILED_TRIAL = "failed_trial.txt"
"""The same of a job by whose failure a sweeper has chosen later jobs: in a sweep that is resumed it fails again, since
otherwise these would be other jobs."""

TAG_LENGTH, GROUP_LENGTH = 64, 128
"""Limits of W&B, in characters."""

NAMED = ("group", "name", "tags")
"""What W&B gets from `wandb`."""

_sweep_dir: Path | None = None
_before: bytes | None = None
"""How the sweep that is resumed was started."""


class NoteSweep(Callback):
    """Records the folder of the sweep for the summary at its end, and in it how it was started, to resume it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _sweep_dir, _before
        _sweep_dir = Path(config.hydra.sweep.dir).absolute()
        _sweep_dir.mkdir(parents=True, exist_ok=True)
        _before = (_sweep_dir / SWEEP).read_bytes() if (_sweep_dir / SWEEP).is_file() else None
        OmegaConf.save(config, _sweep_dir / SWEEP)  # Hydra's own sweeper does it, Optuna's does not

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        job = Path(config.hydra.runtime.output_dir)
        if (job / FAILURE).is_file() and not (job / FAILED_TRIAL).is_file() and _has_informed(job):
            (job / FAILURE).rename(job / FAILED_TRIAL)
        (job / FAILURE).unlink(missing_ok=True)


def _has_informed(job: Path) -> bool:
    """Whether a sweeper has chosen later jobs by the outcome of this one."""
    sweep = job.parent / SWEEP
    if not sweep.is_file() or not job.name.isdigit():
        return False
    sweeper = str(OmegaConf.load(sweep).hydra.sweeper._target_)
    later = (int(other.name) > int(job.name) for other in job.parent.iterdir() if other.name.isdigit())
    return not sweeper.endswith(".BasicSweeper") and any(later)


def check_trial() -> None:
    """Raises UserError in a sweep that is resumed, for a job that is to fail again."""
    hydra = HydraConfig.get()
    job = Path(hydra.runtime.output_dir)
    if hydra.mode is RunMode.MULTIRUN and (job / FAILED_TRIAL).is_file():
        raise UserError(
            f"it has failed, and later jobs were chosen by that; resume={job} resumes it by itself "
            f"({(job / FAILED_TRIAL).read_text().strip().splitlines()[-1][:300]})"
        )


def swept() -> list[str]:
    """The overrides of this job that differ between the jobs of the sweep, `seed=…` last; none outside of sweeps."""
    hydra = HydraConfig.get()
    path = Path(hydra.sweep.dir) / SWEEP
    if hydra.mode is not RunMode.MULTIRUN or not path.is_file():
        return []
    of_all = set(OmegaConf.load(path).hydra.overrides.task)
    own = [str(override) for override in hydra.overrides.task if override not in of_all]
    return sorted(own, key=lambda override: override.startswith("seed="))


def wandb(field: str) -> Any:
    """W&B's `group` (one for each setting), `name` or `tags` of this job of a sweep; None outside of sweeps."""
    own = swept()
    if not own:
        return None
    setting = [override for override in own if not override.startswith("seed=")]
    sweep = "/".join(Path(HydraConfig.get().sweep.dir).parts[-2:])
    if field == "tags":
        return [tag[:TAG_LENGTH] for tag in (*own, f"sweep={sweep}")]
    if field == "name":
        return ", ".join(own)[:GROUP_LENGTH]
    # Groups belong to the whole project: runs of another sweep must not join them.
    return f"{', '.join(setting)[: GROUP_LENGTH - len(sweep) - 3]} ({sweep})" if setting else sweep


def named_as_before(settings: Mapping[str, Any], resumed: Mapping[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """The loggers of a run that is resumed, with the names and tags of its first start: a job may be resumed apart from
    its sweep, or by another path.

    Args:
        settings: the resolved config.
        resumed: that of the first start.
        typed: the overrides of the command line, which come first.
    """
    keys = {override.lstrip("+").partition("=")[0] for override in typed}
    loggers = {}
    for name, node in (settings["logger"] or {}).items():
        before = (resumed.get("logger") or {}).get(name) or {}
        kept = {f for f in NAMED if f in before and node and f in node and f"logger.{name}.{f}" not in keys}
        loggers[name] = node and {**node, **{field: before[field] for field in kept}}
    return {"logger": loggers}


def report_failure(message: str) -> None:
    """Report a failed job at once, while the others run."""
    hydra = HydraConfig.get()
    job = Path(hydra.runtime.output_dir)
    if (job / FAILED_TRIAL).is_file() and (job / "metrics.json").is_file():  # it has been resumed by itself
        return
    print(f"job {hydra.job.num} failed ({hydra.job.override_dirname}): {message}", file=sys.stderr)
    with suppress(OSError):  # the disk may be full
        (job / FAILURE).write_text(message)


def is_reported(error: Exception) -> bool:
    """Whether a job of the sweep has failed with this error; it may have run in another process."""
    reasons = _sweep_dir.rglob(FAILURE) if _sweep_dir else []
    return any(str(error) in reason.read_text() for reason in reasons)


def forget() -> None:
    """Undo the record of a sweep whose command line was wrong."""
    if _sweep_dir and _before is not None:
        write_atomically(_sweep_dir / SWEEP, _before)


def summary() -> int:
    """Print which jobs of the sweep, if there was one, did not finish; returns their number."""
    if _sweep_dir is None or not _sweep_dir.is_dir():
        return 0
    jobs = sorted(_sweep_dir.rglob("train.log"))
    if not jobs:
        return 0
    # A finished job fails where the sweep asks for another one in its folder.
    unfinished = [
        log.parent for log in jobs if not (log.parent / "metrics.json").is_file() or (log.parent / FAILURE).is_file()
    ]
    print(f"sweep    {_sweep_dir}: {len(jobs) - len(unfinished)} of {len(jobs)} jobs finished")
    for job in unfinished:
        reason = job / FAILURE
        lines = reason.read_text().strip().splitlines() if reason.is_file() else []
        print(f"         {job.relative_to(_sweep_dir)}: {lines[-1] if lines else 'did not finish'}", file=sys.stderr)
    if unfinished:
        print(f"resume with `python train.py resume={_sweep_dir}`", file=sys.stderr)
    return len(unfinished)
