"""The checkpoint from which a run resumes."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from fer_lightning.distributed import ranks
from fer_lightning.distributed.signals import Interrupted, interrupts
from fer_lightning.runs.folder import LAST

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which a run goes on: after each epoch, every few minutes, and when a signal ends it.

    It is only written where training can go on to the same weights: after an optimizer step, not in the middle of
    accumulating gradients, and never with a loss that was not finite. All ranks agree on each of these moments.

    Args:
        dirpath: the folder of checkpoints.
        every_minutes: between checkpoints within an epoch; what a run loses at most when it is killed without notice.

    Raises:
        ValueError: `every_minutes` is not positive.
    """

    def __init__(self, dirpath: str, every_minutes: float = 10.0) -> None:
        if every_minutes <= 0:
            raise ValueError(f"every_minutes is a time, above 0, not {every_minutes}")
        self.path, self.every_minutes = Path(dirpath) / LAST, every_minutes
        self._saved_at = 0.0
        self._ended = False
        self._before_validation: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self._ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._ended = state_dict["ended"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = time.monotonic()
        trainer.should_stop |= self._ended  # early stopping had spoken when this was saved; Lightning forgets
        interrupts.install()  # Lightning's own handlers talk to other ranks from within, and may wait for ever
        interrupts.deferred = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (
            trainer.is_last_batch  # Lightning would go on without the validation that follows it
            or (batch_idx + 1) % trainer.accumulate_grad_batches
            or (every > 1 and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0)  # not logged yet
        ):
            return
        due = ranks.is_first() and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        signum, due_now = ranks.highest(interrupts.received, int(due))
        if signum or due_now:
            pl_module.stop_on_bad_loss()
            self._save(trainer)
        if signum:
            raise Interrupted(signum)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        # Taken now, since once in validation there is no other moment from which Lightning can go on; only written if
        # a signal comes. Costs nothing: the weights in it are those in use, unless they will be swapped for averages.
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            state = copy.deepcopy(state)
        progress = state["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):  # as Lightning knows a validation that was broken off
            count["ready"] += 1
            count["started"] += 1
        self._before_validation = state
        self._end_in_validation(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._end_in_validation(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before_validation = None

    def _end_in_validation(self, trainer: L.Trainer) -> None:
        if self._before_validation is None:
            return
        (signum,) = ranks.highest(interrupts.received)
        if signum:
            trainer.strategy.save_checkpoint(self._before_validation, self.path)
            trainer.strategy.barrier("before validation")
            raise Interrupted(signum)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = trainer.should_stop
        self._save(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not where the epoch ends: only after that does Lightning log its scores.
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
