"""For tests that interrupt runs: callbacks that end their process, a fast network, comparison with another run."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from fer_lightning.distributed.signals import interrupts
from tests.conftest import TINY

SETTINGS = (
    *TINY,
    "model._target_=tests.interruptions.SmallNetwork",
    "trainer.max_epochs=3",
    "data.eval_batch_size=16",
    "model.dropout=0.2",
    "trainer.log_every_n_steps=3",
    "logger=csv",
    "callbacks.early_stopping.patience=50",
)
BATCHES = 12
"""Of such a run: 4 an epoch."""


def without(settings: tuple[str, ...], *keys: str) -> list[str]:
    """Overrides less those of these keys."""
    return [setting for setting in settings if setting.partition("=")[0] not in keys]


def ending(hook: str, n: int | str, signal: str, once: Path, rank: int = 0, callback: str = "EndAt") -> list[str]:
    """Overrides that add a callback which ends the run at a hook; several may be used with different `once`."""
    arguments = {"_target_": f"tests.interruptions.{callback}", "hook": hook, "n": n, "signal": signal, "once": once}
    name = "_".join(("end", *once.name.split()))
    return [f"+callbacks.{name}.{key}={value}" for key, value in {**arguments, "rank": rank}.items()]


def waiting(signal: str, once: Path, n: int = 8) -> list[str]:
    """Overrides by which the run waits in the n-th batch for a signal."""
    return ending("on_train_batch_start", n, signal, once, callback="WaitAt")


def resumed(run: Path, *overrides: str) -> list[str]:
    """The command line that resumes a run or a sweep; every test that resumes one uses it."""
    return [f"resume={run}", *overrides]


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a run that interruptions must not change."""
    rows, logged = table(run / "metrics.csv"), table(run / "csv" / "metrics.csv")
    metrics = json.loads((run / "metrics.json").read_text())
    for measured in (*rows, metrics):
        for name in ("train/images_per_second", "train/seconds"):
            measured.pop(name, None)
    values: dict[str, Any] = {"metrics.csv": rows, "csv logger": logged, "metrics.json": metrics}
    for name in ("best", "last"):
        state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "training_sums"):
            values |= {f"{name}: {key}": value for key, value in flat(state[part], part).items()}
    values["predictions"] = (run / "report" / "predictions.csv").read_bytes()
    return values


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def flat(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return {name: (str(value.dtype), tuple(value.shape), content)}
    if isinstance(value, dict):
        return {key: item for k, v in value.items() for key, item in flat(v, f"{name}.{k}").items()}
    if isinstance(value, list | tuple):
        return {key: item for i, v in enumerate(value) for key, item in flat(v, f"{name}.{i}").items()}
    return {name: value}


def assert_same(run: Path, reference: dict[str, Any]) -> None:
    values = outcome(run)
    assert values.keys() == reference.keys()
    assert [name for name in reference if values[name] != reference[name]] == []


@cache
def uninterrupted_run(folder: Path) -> Path:
    """The run of `SETTINGS` without any fault, made once for all modules that share a temporary folder."""
    from tests.processes import apart

    ended = apart(folder / "uninterrupted", *SETTINGS, f"hydra.run.dir={folder}/uninterrupted/run")
    assert ended.code == 0, ended.err
    return folder / "uninterrupted" / "run"


class EndAt(L.Callback):
    """Sends this process a signal when a hook is called for the n-th time; once only, however often the run starts.

    Args:
        hook: name of a callback's hook.
        n: which call of it in one process, from 1.
        signal: name of the signal.
        once: a file that is created when the signal is sent.
        rank: of the process that receives it.
    """

    def __init__(self, hook: str, n: int, signal: str, once: str, rank: int = 0) -> None:
        self.hook, self.n, self.signal, self.once, self.rank = hook, n, signal, Path(once), rank
        self.calls = 0

    def _called(self, hook: str, trainer: L.Trainer) -> None:
        if hook != self.hook or trainer.global_rank != self.rank:
            return
        self.calls += 1
        if self.calls == self.n and not self.once.exists():
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


class RecordSeed(L.Callback):
    """Writes the seed that each rank runs with into a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (self.folder / f"seed{trainer.global_rank}").write_text(str(pl_module.hparams["seed"]))


class SmallNetwork(nn.Module):
    """Convolution, norm and dropout, with checkpoints of a few kilobytes; ignores all settings but `dropout`."""

    def __init__(self, num_classes: int, dropout: float = 0.0, **unused: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 7, stride=4, padding=3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(32, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]

    def forward_head(self, features: Tensor) -> Tensor:
        return self.fc(self.dropout(features))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class Whole(nn.Module):
    """A network without a separate classifier."""

    def __init__(self, num_classes: int, **unused: Any) -> None:
        super().__init__()
        self.all = SmallNetwork(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.all(images)  # type: ignore[no-any-return]
