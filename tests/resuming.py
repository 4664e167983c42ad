"""Interrupting and resuming runs in tests, and comparing the outcome with another run."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.conftest import TINY
from tests.processes import apart

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
    """The command line that resumes a run or a sweep; every test that resumes one uses it.

    Tests record targets of their own in the folder, such as the callback that ends the run.
    """
    return [f"resume={run}", "trust=true", *overrides]


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
        content = value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
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
    ended = apart(folder / "uninterrupted", *SETTINGS, f"hydra.run.dir={folder}/uninterrupted/run")
    assert ended.code == 0, ended.err
    return folder / "uninterrupted" / "run"
