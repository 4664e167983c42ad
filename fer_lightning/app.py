"""The training command: compose the config, run the job, and report a user's error in one line.

Everything heavy is imported inside `job`, so that help and config errors answer at once.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fer_lightning.config import CONF, schema
from fer_lightning.config.messages import composition_error
from fer_lightning.distributed import slurm
from fer_lightning.distributed.launch import RankError
from fer_lightning.distributed.signals import Interrupted, end_with_parent, handled, ignore_at_exit, interrupts
from fer_lightning.errors import UserError
from fer_lightning.runs import resume, sweeps

log = logging.getLogger(__name__)

TRACEBACK = "HYDRA_FULL_ERROR"
"""Hydra's own switch: set to 1, errors come with their traceback."""
_wants_traceback = os.environ.get(TRACEBACK) == "1"

_raised_by_job: Exception | None = None
"""The error of the last job, as opposed to errors of Hydra before the job started."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float | None:
    """One job; returns the monitored metric at the best checkpoint, which sweepers optimise."""
    global _raised_by_job
    sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        return _metrics(cfg)[cfg.monitor.metric]  # type: ignore[return-value]
    except Exception as error:
        is_users = isinstance(error, UserError)
        if is_users:
            log.info("error: %s", error)  # into train.log
        elif sweeping:
            log.exception("")
        if sweeping:
            sweeps.report_failure(str(error) if is_users else traceback.format_exc())
        elif isinstance(error, RankError) or (is_users and not _wants_traceback):
            _fail(str(error))  # past Hydra, which would add a line of its own
        _raised_by_job = error
        raise


def _metrics(cfg: DictConfig) -> dict[str, float | str]:
    """The content of the job's metrics.json, after running it in this process, in one per device, or as one of the
    ranks that torchrun or srun started."""
    gc.disable()  # what modules define stays, and searching it takes an eighth of the time of importing Lightning
    from fer_lightning.config import devices, signatures
    from fer_lightning.config.resolve import resolve
    from fer_lightning.config.validation import Started, check
    from fer_lightning.distributed import launch, ranks
    from fer_lightning.runs import folder
    from fer_lightning.training import distillation, finetuning, worker
    from fer_lightning.training.imbalance import Strategy
    from fer_lightning.training.job import run

    gc.enable()
    sweeps.check_trial()
    run_dir = Path(HydraConfig.get().runtime.output_dir).absolute()
    rank = ranks.started_outside()
    if rank and HydraConfig.get().mode is RunMode.MULTIRUN and not slurm.launched_by_submitit():
        raise UserError("--multirun under torchrun or srun: start the sweep by itself; its jobs start their own ranks")
    if rank and rank.rank > 0:  # a launcher that composes the config on every rank
        return worker.follow()
    resumed = folder.load_settings(run_dir) if folder.has_trained(run_dir) else None
    typed: list[str] = OmegaConf.to_container(HydraConfig.get().overrides.task)  # type: ignore[assignment]
    settings = resolve(cfg, resumed, typed=typed)
    if resumed:
        settings |= sweeps.named_as_before(settings, resumed, typed)
    signatures.check(settings)
    check(settings, Started(rank.world, rank.local_world) if rank else None)
    Strategy.from_config(settings["imbalance"]).check(settings["trainer"], mixes=bool(settings.get("mix")))
    finetuning.check(settings)
    if settings["init_from"]:
        settings |= finetuning.kept(settings, resumed, typed) if resumed else finetuning.adopted(settings, typed)
    if settings["distill"]["teachers"]:
        distillation.check(settings["distill"])
        settings["distill"] = distillation.located(settings["distill"], (resumed or {}).get("distill"))
    if multiprocessing.current_process().name.startswith("Loky"):  # a worker that joblib started
        end_with_parent()
    with folder.enter(run_dir, settings):
        resume.keep_command(run_dir, cfg)
        if metrics := folder.finished(run_dir):
            print(f"{run_dir} is finished: there is nothing to do")
            return metrics
        settings = folder.load_settings(run_dir) | {"trust": settings["trust"]}
        processes = 1 if rank else devices.count(settings["trainer"])
        try:
            if rank:
                return worker.lead(settings, run_dir)
            if processes == 1:
                return run(settings, run_dir)
            launch.fan_out(run_dir, processes, trust=settings["trust"])
        except Interrupted as error:
            print(f"{error}: resume with `python train.py resume={run_dir}`", file=sys.stderr)
            if slurm.launched_by_submitit():  # it does not call `main`
                slurm.requeue_if_due(error.signum)
            raise
        metrics = folder.finished(run_dir)
        assert metrics is not None
        return metrics


def main() -> None:
    """Entry point of `train.py` and `python -m fer_lightning.app`; exits with code 1 and one line on a user's error."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    with handled():  # from here on, since imports and reading the data take seconds
        try:
            _run(rank)
        except Interrupted as error:
            if rank == 0:
                slurm.requeue_if_due(error.signum)
            raise
        finally:
            ignore_at_exit()


def register() -> None:
    """Register the config's types and resolvers."""
    schema.register()
    OmegaConf.register_new_resolver("wandb", sweeps.wandb, replace=True)
    OmegaConf.register_new_resolver("slurm_job", slurm.job_folder, replace=True)


def _run(rank: int) -> None:
    global _raised_by_job
    register()
    if rank > 0:
        from fer_lightning.distributed import ranks
        from fer_lightning.training import worker

        try:
            others = ranks.started_outside()
        except UserError as error:
            _fail(str(error))
        if others:  # the first rank composes the config for all
            worker.follow()
            return
    before = os.environ.get(TRACEBACK)
    os.environ[TRACEBACK] = "1"  # Hydra would print its errors itself, in several lines
    _raised_by_job = problem = None
    failed = True
    try:
        sys.argv[1:] = resume.expand(sys.argv[1:])
        job()
        failed = False
    except Exception as error:
        problem = error
    finally:
        if before is None:
            del os.environ[TRACEBACK]
        started_outside = "RANK" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ
        if rank == 0 and started_outside and not interrupts.received:  # a signal reaches the others as well
            from fer_lightning.training import worker

            worker.dismiss(int(failed))
    unfinished = sweeps.summary()  # each job has reported why
    if unfinished and (problem is None or problem is _raised_by_job or sweeps.is_reported(problem)):
        sys.exit(1)
    if problem is not None:
        message = str(problem) if isinstance(problem, UserError) else None
        if message is None and problem is not _raised_by_job:
            message = composition_error(problem, sys.argv[1:])
            if message is not None:
                sweeps.forget()
        if _wants_traceback or message is None:
            raise problem
        _fail(" ".join(message.split()))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
