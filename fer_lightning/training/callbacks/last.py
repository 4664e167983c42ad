"""The checkpoint from which a run resumes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer

from fer_lightning.distributed import ranks
from fer_lightning.distributed.signals import Interrupted, interrupts
from fer_lightning.runs.folder import LAST


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`, from which a run resumes: after each epoch, every few minutes, and when a signal ends it.

    It is only written where training can resume to the same weights: after an optimizer step, not while gradients are
    accumulated or in validation, and never after a non-finite loss. All ranks agree on each of these moments.

    Args:
        dirpath: the folder of checkpoints.
        every_minutes: time between checkpoints within an epoch, which a killed run loses at most.

    Raises:
        ValueError: `every_minutes` is not positive.
    """

    def __init__(self, dirpath: str, every_minutes: float = 10.0) -> None:
        if every_minutes <= 0:
            raise ValueError(f"every_minutes must be above 0, not {every_minutes}")
        self.path, self.every_minutes = Path(dirpath) / LAST, every_minutes
        self._saved_at = 0.0
        self._ended = self._by_patience = False

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self._ended, "by_patience": self._by_patience}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._ended, self._by_patience = state_dict["ended"], state_dict.get("by_patience", False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = time.monotonic()
        # What had ended the saved run Lightning forgets; a longer patience, or none, continues it.
        trainer.should_stop |= self._ended and (not self._by_patience or _is_impatient(trainer))
        interrupts.install()  # Lightning's own handlers wait for other ranks, and may deadlock
        interrupts.deferred = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        validates_every = trainer.val_check_batch or 1  # in batches
        if (
            trainer.is_last_batch  # Lightning would resume without the validation that follows it
            or (batch_idx + 1) % trainer.accumulate_grad_batches
            or (every > 1 and trainer.global_step % every == 0)  # Lightning logs this step only after this hook
            or (validates_every > 1 and (batch_idx + 1) % validates_every == 0)  # as for the last batch
        ):
            return
        due = ranks.is_first() and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        signum, due_now = ranks.highest(interrupts.received, int(due))
        if signum or due_now:
            pl_module.stop_on_bad_loss()
            self._save(trainer)
        if signum:
            raise Interrupted(signum)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        left = [c.time_remaining() for c in _callbacks(trainer) if isinstance(c, Timer)]
        # A limit of time is checked again.
        self._ended = trainer.should_stop and not any(seconds is not None and seconds <= 0 for seconds in left)
        self._by_patience = _is_impatient(trainer)
        self._save(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not at the end of the epoch: Lightning logs the scores of an epoch after that hook.
        (signum,) = ranks.highest(interrupts.received)
        if signum:
            raise Interrupted(signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interrupts.deferred = False
        if interrupts.received:
            raise Interrupted(interrupts.received)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at = time.monotonic()


def _callbacks(trainer: L.Trainer) -> list[Any]:
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def _is_impatient(trainer: L.Trainer) -> bool:
    return any(isinstance(c, EarlyStopping) and c.wait_count >= c.patience for c in _callbacks(trainer))
