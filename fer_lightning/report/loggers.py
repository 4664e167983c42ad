"""Loggers that a run which is gone on with can go on with: nothing twice, nothing lost.

A resumed run trains again what it had trained since its last checkpoint, and comes to the same values. Each logger
therefore keeps the last step it was given in the run folder, and drops what it has been given before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from fer_lightning.report.files import write_atomically


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

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step is None:
            super().log_metrics(metrics, step)  # type: ignore[misc]
            return
        if self._once is None:
            self._once = Once(Path(self.save_dir) / f".{type(self).__name__.lower()}_step.json")
        if new := self._once.new(metrics, step):
            super().log_metrics(new, step)  # type: ignore[misc]
            self._once.note(new, step)


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
            if lines:
                path.unlink()
            writer = super().experiment
            if lines:
                path.write_text("".join(lines))
                writer.metrics_keys = lines[0].strip().split(",")
        return self._experiment  # type: ignore[return-value]


class TensorBoard(OnceMixin, TensorBoardLogger):  # type: ignore[misc]
    """Lightning's TensorBoardLogger."""


class Wandb(OnceMixin, WandbLogger):  # type: ignore[misc]
    """Lightning's WandbLogger that remembers whether the best checkpoint shall be sent as an artifact."""

    send_checkpoint = False
