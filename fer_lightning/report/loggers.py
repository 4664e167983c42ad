"""Loggers that continue when a run is resumed: nothing is logged twice, and nothing is lost.

One exception: with `trainer.log_every_n_steps=1`, the step in which a signal ends a run is not logged, since Lightning
logs it only after the hook that ends the run.

A resumed run repeats the steps since its last checkpoint, with the same values. Each logger therefore stores the last
step that was logged in the run folder, and drops values that were logged before.
"""

from __future__ import annotations

import csv
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from fer_lightning.errors import UserError, flat
from fer_lightning.report.files import write_atomically

log = logging.getLogger(__name__)


class Once:
    """The last step that was logged, over all starts of a run, and the names of its values.

    Args:
        path: the file that stores it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        last: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"step": -1, "names": []}
        self.step, self.names = int(last["step"]), list(last["names"])

    def new(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """The metrics that were not logged yet at this step or a later one."""
        if step < self.step:
            return {}
        return {name: value for name, value in metrics.items() if step > self.step or name not in self.names}

    def note(self, metrics: Mapping[str, float], step: int) -> None:
        """Store that these were logged."""
        self.names = [*(self.names if step == self.step else []), *metrics]
        self.step = step
        write_atomically(self.path, json.dumps({"step": step, "names": self.names}).encode())


class OnceMixin:
    """Mixin for Lightning's loggers, first in the bases: drops what was logged before the run was interrupted."""

    save_dir: Any
    _once: Once | None = None

    @property
    def once(self) -> Once:
        """The last step logged so far."""
        if self._once is None:
            self._once = Once(Path(self.save_dir) / f".{type(self).__name__.lower()}_step.json")
        return self._once

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step is None:
            super().log_metrics(metrics, step)  # type: ignore[misc]
            return
        if new := self.once.new(metrics, step):
            super().log_metrics(new, step)  # type: ignore[misc]
            self.once.note(new, step)


class CSV(OnceMixin, CSVLogger):  # type: ignore[misc]
    """Lightning's CSVLogger, which appends to an existing file."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            path = Path(self.log_dir, ExperimentWriter.NAME_METRICS_FILE)
            aside = path.with_suffix(".resumed")
            if path.exists():
                path.replace(aside)  # a new writer deletes what is there
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory")
                self._experiment = writer = ExperimentWriter(self.log_dir)
            lines = aside.read_text().splitlines(keepends=True) if aside.exists() else []
            if lines and not lines[-1].endswith("\n"):  # the run was killed while writing it
                lines.pop()
            if lines:
                rows = csv.DictReader(lines)
                writer.metrics_keys = list(rows.fieldnames or ())
                # Rows after the stored step will be logged again.
                logged = [
                    line
                    for line, row in zip(lines[1:], rows, strict=True)
                    if not self.once.new({k: 0.0 for k, v in row.items() if v and k != "step"}, int(row["step"]))
                ]
                write_atomically(path, "".join(lines[:1] + logged).encode())
            aside.unlink(missing_ok=True)
        return self._experiment  # type: ignore[return-value]


class TensorBoard(OnceMixin, TensorBoardLogger):  # type: ignore[misc]
    """Lightning's TensorBoardLogger."""


class Wandb(OnceMixin, WandbLogger):
    """Lightning's WandbLogger, whose errors never stop a run: each kind is reported in one line.

    Attributes:
        send_checkpoint: whether to send the best checkpoint as an artifact.
        may_go_offline: whether to log offline if the run cannot be registered.
        failed: something could not be sent, and that was reported.
    """

    send_checkpoint = False
    may_go_offline = True
    failed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None and self._wandb_init.get("mode") == "online":
            import wandb

            try:
                return super().experiment
            except (wandb.Error, TimeoutError) as error:
                reason = flat(error, 300)
                if not self.may_go_offline:
                    raise UserError(
                        f"logger.wandb.mode=online: {reason}; use logger.wandb.mode=auto to log offline"
                    ) from error
                self.warn_offline(f"because the run could not be registered ({reason})")
                self._wandb_init["mode"] = "offline"
        return super().experiment

    def warn_offline(self, reason: str) -> None:
        """Warn that the run is logged offline, and how to send it later."""
        log.warning("W&B logs offline %s; `wandb sync %s/wandb/offline-run-*` sends it later", reason, self.save_dir)

    def log_hyperparams(self, params: Any) -> None:
        self.attempt(partial(super().log_hyperparams, params))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.attempt(partial(super().log_metrics, metrics, step))

    def finish(self, *, failed: bool) -> None:
        """End the W&B run, waiting for pending data for at most the setting `finish_timeout`."""
        if self._experiment is not None:
            self.attempt(partial(self._finish, self._experiment, int(failed)))

    @staticmethod
    def _finish(run: Any, exit_code: int) -> None:
        import wandb

        try:
            run.finish(exit_code=exit_code)
        except ConnectionError:  # its process is dead: let the next job of a sweep start another
            with suppress(Exception):
                wandb.teardown()
            raise

    def attempt(self, send: Callable[[], None]) -> None:
        """Send something; if anything fails, warn once."""
        try:
            send()
        except UserError:
            raise
        except Exception as error:
            if self.failed:
                return
            self.failed = True
            log.info("W&B", exc_info=error)
            reason = flat(error, 300).rstrip(".")
            folder = self._experiment.settings.sync_dir if self._experiment is not None else self.save_dir
            log.warning(
                "W&B did not receive the complete run (%s); `wandb sync --include-online %s` sends it later",
                reason,
                folder,
            )
