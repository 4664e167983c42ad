"""The best checkpoint and early stopping, both from the epoch on in which a strategy is fully in force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from fer_lightning.runs.folder import BEST


class _Candidates(L.Callback):
    """Mixed in before a callback that follows a metric, which then sees only epochs with a score that counts.

    Before the module's `first_scored_epoch`, what a strategy defers (weights, sampling) is not in force, and a score
    belongs to another training. And `trainer.max_steps` may end an epoch before its validation: Lightning would compare
    the score of an earlier epoch.
    """

    monitor: Any

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._is_candidate(trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._is_candidate(trainer, pl_module):
            super().on_validation_end(trainer, pl_module)

    def _is_candidate(self, trainer: L.Trainer, module: Any) -> bool:
        scored = not str(self.monitor).startswith("val/") or module.is_validated
        return bool(scored and trainer.current_epoch >= module.first_scored_epoch)


class BestCheckpoint(_Candidates, ModelCheckpoint):
    """Lightning's ModelCheckpoint of the one best epoch among those whose score counts.

    Its file is best.ckpt, also after resuming: `evaluate` reads that.
    """

    def __init__(self, dirpath: str, monitor: str, mode: str) -> None:
        super().__init__(dirpath, Path(BEST).stem, monitor, mode=mode, enable_version_counter=False)


class PatientStopping(_Candidates, EarlyStopping):
    """Lightning's EarlyStopping over the epochs whose score counts."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})  # the config's, which may have changed
