"""What runs in tests use: callbacks that interrupt them, and a fast network.

Imported by the runs themselves, and therefore without `tests.conftest`, which changes the environment.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
from torch import Tensor, nn

from fer_lightning.distributed.signals import interrupts

_calls: Counter[tuple[str, Path]] = Counter()
"""Calls so far, by run folder and `once`."""


class EndAt(L.Callback):
    """Sends this process a signal when a hook is called for the n-th time; once only, however often the run starts.

    Args:
        hook: name of a callback's hook.
        n: which call of it by a job in one process, from 1; its stages have a callback each, and are counted together.
        signal: name of the signal.
        once: a file that is created when the signal is sent.
        rank: of the process that receives it.
    """

    def __init__(self, hook: str, n: int, signal: str, once: str, rank: int = 0) -> None:
        self.hook, self.n, self.signal, self.once, self.rank = hook, n, signal, Path(once), rank

    def _called(self, hook: str, trainer: L.Trainer) -> None:
        if hook != self.hook or trainer.global_rank != self.rank:
            return
        key = trainer.default_root_dir, self.once
        _calls[key] += 1
        if _calls[key] == self.n and not self.once.exists():
            self.once.touch()
            self._act()

    def _act(self) -> None:
        os.kill(os.getpid(), getattr(signal, self.signal))

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._called("on_train_batch_start", trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._called("on_train_batch_end", trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._called("on_train_epoch_start", trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._called("on_train_epoch_end", trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._called("on_validation_batch_end", trainer)

    def on_test_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._called("on_test_start", trainer)


class FailWhile(L.Callback):
    """Raises at the start of a job of a sweep while a file exists."""

    def __init__(self, path: str, job: int) -> None:
        self.path, self.job = Path(path), job

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.path.exists() and Path(trainer.default_root_dir).name == str(self.job):
            raise RuntimeError("a passing failure")


class WaitAt(EndAt):
    """Waits there until the signal arrives from elsewhere."""

    def _act(self) -> None:
        end = time.monotonic() + 120
        while interrupts.received != getattr(signal, self.signal):
            assert time.monotonic() < end, f"{self.signal} did not come, but {interrupts.received}"
            time.sleep(0.05)


class LongBatch(L.Callback):
    """Makes one batch last for minutes, the first time it is trained."""

    def __init__(self, batch: int, once: str) -> None:
        self.batch, self.once = batch, Path(once)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.batch and not self.once.exists():
            self.once.touch()
            time.sleep(600)


class RecordSettings(L.Callback):
    """Writes the settings that each rank runs with into a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (self.folder / f"settings{trainer.global_rank}").write_text(json.dumps(dict(pl_module.hparams), default=str))


class RecordBatches(L.Callback):
    """Writes what each rank trains on, and how, into a folder: a line of JSON for each batch, see `batches`."""

    def __init__(self, folder: str) -> None:
        self.folder, self._rates = Path(folder), [0.0]

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._rates = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = pl_module.loss
        line = {
            "epoch": trainer.current_epoch,
            "rows": batch.rows.tolist(),
            "labels": batch.labels.tolist(),
            "mixed": batch.targets is not None and bool((batch.targets.max(1).values < 1).any()),
            "in_force": loss.in_force,
            "weight": None if loss.weight is None else loss.weight.tolist(),
            "rates": self._rates,
        }
        with (self.folder / f"batches{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    @classmethod
    def override(cls, folder: Path) -> str:
        """The override that adds it."""
        folder.mkdir(parents=True, exist_ok=True)
        return f"+callbacks.record={{_target_: tests.interruptions.{cls.__name__}, folder: '{folder}'}}"


def batches(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What `RecordBatches` has written."""
    return [json.loads(line) for line in (folder / f"batches{rank}.jsonl").read_text().splitlines()]


class RecordLosses(L.Callback):
    """Appends each optimizer step and the loss of its batch to a file."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        with self.file.open("a") as file:
            file.write(f"{trainer.global_step} {float(outputs['loss'])!r}\n")


class NumpyState(L.Callback):
    """Has a state that checkpoints may not hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": np.float64(0.5)}


class SmallNetwork(nn.Module):
    """A backbone of two convolutions, with checkpoints of a few kilobytes; it ignores a ResNet's settings."""

    num_features = 32

    def __init__(self, in_channels: int = 1, **unused: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 16, 7, stride=4, padding=3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]
