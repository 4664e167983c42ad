"""Fixtures that several rooms share."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Set before torch loads: workers and the ranks of jobs share the cores, and tiny networks gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as for trainer.deterministic; read at the first product
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)

TINY = (
    "data=synthetic",
    "data.synthetic.n_train=140",
    "data.synthetic.n_val=40",
    "data.synthetic.n_test=60",
    "data.batch_size=32",
    "model=resnet18",
    "model.width=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "optimizer.lr=0.02",
    "logger=none",
)
"""A whole job in about two seconds."""

SMALL = (
    *(setting for setting in TINY if not setting.startswith("model")),
    "model._target_=tests.interruptions.SmallNetwork",
)
"""The same with a network that trains faster."""


@pytest.fixture(scope="session")
def fer2013_dir() -> Path:
    """The folder with the real data, for tests marked real_data."""
    folder = os.environ.get("FER2013_DIR")
    if not folder:
        pytest.skip("FER2013_DIR is not set")
    return Path(folder)


_homes = itertools.count()


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test does touches the caches and settings of whoever runs it."""
    home = tmp_path_factory.getbasetemp() / f"home{next(_homes)}"  # made by what needs it
    for name in ("FER_LIGHTNING_CACHE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("NETRC", str(home / "netrc"))


QUICK_DPI = 50
"""Of the figures of trainings in tests, which would otherwise take longer than their epochs."""


class Run:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str, folder: Path) -> None:
        self.code, self.out, self.err, self.folder = code, out, err, folder


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Run]:
    """Runs the training command in this process, as `python train.py <overrides>` would."""
    runs = iter(range(1000))

    def train(*overrides: str, folder: Path | None = None) -> Run:
        from hydra.core.global_hydra import GlobalHydra

        from fer_lightning.app import main

        monkeypatch.setattr("fer_lightning.report.style.DPI", QUICK_DPI)
        folder = folder or tmp_path / f"run{next(runs)}"
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides, f"hydra.run.dir={folder}"])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        out, err = capsys.readouterr()
        return Run(code, out, err, folder)

    return train


def assert_refused_in_one_line(run: Run, message: str) -> None:
    """A user's error: one line that matches `message`, exit code 1, and nothing was trained."""
    assert run.code == 1
    assert re.fullmatch(f"error: .*{message}.*\n", run.err), run.err
    assert "epoch 1/" not in run.out
    assert not list(run.folder.rglob("*.ckpt"))


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `fer-lightning <arguments>` in this process; returns its exit code and what it printed as errors."""

    def command(*arguments: object) -> tuple[int, str]:
        from fer_lightning.cli import app

        monkeypatch.setattr(sys, "argv", ["fer-lightning", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app()
        return int(end.value.code or 0), capsys.readouterr().err

    return command
