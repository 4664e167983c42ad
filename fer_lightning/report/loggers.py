"""Loggers that a run which is gone on with can go on with: nothing twice, nothing lost.

A resumed run trains again what it had trained since its last checkpoint, and comes to the same values. Each logger
therefore keeps the last step it was given in the run folder, and drops what it has been given before.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from fer_lightning.errors import UserError
from fer_lightning.report.files import write_atomically

log = logging.getLogger(__name__)


class Once:
    """What a logger has been given, over all starts of a run.

    Args:
        path: where it is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"step": -1, "names": []}
        self.step, self.names = int(known["step"]), list(known["names"])

    def new(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Those of the metrics that were not logged at this step or a later one."""
        if step < self.step:
            return {}
        return {name: value for name, value in metrics.items() if step > self.step or name not in self.names}

    def note(self, metrics: Mapping[str, float], step: int) -> None:
        """These have been logged now."""
        self.names = [*(self.names if step == self.step else []), *metrics]
        self.step = step
        write_atomically(self.path, json.dumps({"step": step, "names": self.names}).encode())


class OnceMixin:
    """Mixed in before one of Lightning's loggers: drops what was logged before the run was interrupted."""

    save_dir: Any
    _once: Once | None = None

    @property
    def once(self) -> Once:
        """What has been logged so far."""
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
    """Lightning's CSVLogger; goes on in the file that is there instead of deleting it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            if lines and not lines[-1].endswith("\n"):  # the run was killed while writing it
                lines.pop()
            # Nor is there more than was noted, which the run will come to again.
            lines = lines[:1] + [
                line
                for line, row in zip(lines[1:], csv.DictReader(lines), strict=True)
                if not self.once.new({k: 0.0 for k, v in row.items() if v and k != "step"}, int(row["step"]))
            ]
            if lines:
                path.unlink()
            writer = super().experiment
            if lines:
                path.write_text("".join(lines))
                writer.metrics_keys = lines[0].strip().split(",")
        return self._experiment  # type: ignore[return-value]


class TensorBoard(OnceMixin, TensorBoardLogger):  # type: ignore[misc]
    """Lightning's TensorBoardLogger."""


class Wandb(OnceMixin, WandbLogger):
    """Lightning's WandbLogger, whose troubles never stop a run: they are told in one line, and it goes on without.

    Attributes:
        send_checkpoint: whether the best checkpoint shall be sent as an artifact.
        may_go_offline: whether to log offline where the run cannot be registered.
        failed: W&B could not take something, and it was told.
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
                reason = " ".join(str(error).split())
                if not self.may_go_offline:
                    raise UserError(f"logger.wandb.mode=online: {reason}; mode=auto would log offline") from error
                self.tell_offline(f"as the run could not be registered ({reason})")
                self._wandb_init["mode"] = "offline"
        return super().experiment

    def tell_offline(self, reason: str) -> None:
        """Say that the run is kept here, and how to send it."""
        log.warning("W&B logs offline, %s; `wandb sync %s/wandb/offline-run-*` sends it later", reason, self.save_dir)

    def log_hyperparams(self, params: Any) -> None:
        self.attempt(partial(super().log_hyperparams, params))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.attempt(partial(super().log_metrics, metrics, step))

    def finish(self, *, failed: bool) -> None:
        """End the W&B run; waits for what is not sent yet, for as long as the setting `finish_timeout` says."""
        if self._experiment is not None:
            self.attempt(partial(self._finish, self._experiment, int(failed)))

    @staticmethod
    def _finish(run: Any, exit_code: int) -> None:
        import wandb

        try:
            run.finish(exit_code=exit_code)
        except ConnectionError:  # its process is dead: the next job of a sweep starts another
            with suppress(Exception):
                wandb.teardown()
            raise

    def attempt(self, send: Callable[[], None]) -> None:
        """Send something; that W&B could not take it all is told once."""
        try:
            send()
        except UserError:
            raise
        except Exception as error:
            if self.failed:
                return
            self.failed = True
            log.info("W&B", exc_info=error)
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            folder = self._experiment.settings.sync_dir if self._experiment is not None else self.save_dir
            log.warning(
                "W&B did not get all of the run (%s); `wandb sync --include-online %s` sends it later", reason, folder
            )
