"""`precision=auto` is resolved once, on the machine that trains, and bf16 by name works where it is emulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml

from fer_lightning.config.precision import NATIVE_BF16, choose_precision, has_native_bf16
from tests.conftest import TINY, Run

Train = Callable[..., Run]
ONCE = (*TINY, "trainer.max_epochs=1")


def trained_in(run: Run) -> Any:
    return yaml.safe_load((run.folder / "config.yaml").read_text())["trainer"]["precision"]


@pytest.mark.parametrize(
    ("device", "native", "precision"),
    [
        ("cpu", True, "bf16-mixed"),
        ("cpu", False, "32-true"),
        ("cuda", True, "bf16-mixed"),
        ("cuda", False, "16-mixed"),
        ("mps", False, "32-true"),
    ],
)
def test_auto_is_the_fastest_precision(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool, precision: str
) -> None:
    monkeypatch.setenv(NATIVE_BF16, str(int(native)))
    assert choose_precision(device) == precision


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_tile"])
def test_bf16_is_native_with_either_instruction_set(monkeypatch: pytest.MonkeyPatch, instructions: str) -> None:
    monkeypatch.delenv(NATIVE_BF16, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: False)
    assert not has_native_bf16("cpu")
    monkeypatch.setattr(torch.cpu, f"_is_{instructions}_supported", lambda: True)
    assert has_native_bf16("cpu")


def test_emulated_bf16_of_a_gpu_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NATIVE_BF16, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_native_bf16("cuda")


def test_resumed_run_keeps_its_precision(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NATIVE_BF16, "0")
    run = train(*ONCE)
    assert run.code == 0, run.err
    assert trained_in(run) == "32-true"
    (run.folder / "metrics.json").unlink()
    monkeypatch.setenv(NATIVE_BF16, "1")  # as on another machine
    again = train(f"resume={run.folder}", folder=run.folder)
    assert again.code == 0, again.err
    assert trained_in(again) == "32-true"


def test_emulated_bf16_trains_and_warns_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NATIVE_BF16, "0")
    run = train(*ONCE, "precision=bf16", "trainer.limit_train_batches=2")
    assert run.code == 0, run.err
    assert trained_in(run) == "bf16-mixed"
    assert (run.out + run.err).count("emulates bfloat16") == 1
    assert "at least five times" in run.out + run.err


def test_native_bf16_does_not_warn(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NATIVE_BF16, "1")
    run = train(*ONCE, "trainer.limit_train_batches=2")
    assert run.code == 0, run.err
    assert trained_in(run) == "bf16-mixed"
    assert "bfloat16" not in run.out + run.err
