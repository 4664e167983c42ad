"""The best checkpoint and early stopping, both from the epoch on in which a strategy is fully in force."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


def _is_candidate(trainer: L.Trainer, module: Any, monitor: str | None) -> bool:
    """Whether the epoch has a score that counts: `trainer.max_steps` may end one before its validation, and Lightning
    would then compare the score of an earlier epoch."""
    scored = not str(monitor).startswith("val/") or module.is_validated
    return bool(scored and trainer.current_epoch >= module.first_scored_epoch)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint; epochs before the module's `first_scored_epoch` are not candidates.

    Before it, what a strategy defers (weights, sampling) is not in force, and a score belongs to another training.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if _is_candidate(trainer, pl_module, self.monitor):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if _is_candidate(trainer, pl_module, self.monitor):
            super().on_validation_end(trainer, pl_module)


class PatientStopping(EarlyStopping):
    """Lightning's EarlyStopping; patience begins at the module's `first_scored_epoch`."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if _is_candidate(trainer, pl_module, self.monitor):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if _is_candidate(trainer, pl_module, self.monitor):
            super().on_validation_end(trainer, pl_module)
