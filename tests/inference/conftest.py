"""A finished run, and the files made from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fer_lightning.data.synthetic import synthetic
from tests.conftest import TINY
from tests.processes import apart


def train(folder: Path, *settings: str) -> Path:
    ended = apart(folder, *TINY, "trainer.max_epochs=1", "precision=fp32", *settings, f"hydra.run.dir={folder}/run")
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a post-hoc adjustment, which changes its predictions."""
    return train(tmp_path_factory.mktemp("adjusted"), "imbalance.posthoc_tau=0.5")


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same data with another seed and network."""
    return train(tmp_path_factory.mktemp("other"), "seed=1", "model.stem=small")


@pytest.fixture(scope="session")
def test_images() -> NDArray[np.uint8]:
    """The test images of the runs, in the order of predictions.csv."""
    faces = synthetic(n_train=140, n_val=40, n_test=60)
    return faces.images[faces.rows("private")]


@pytest.fixture(scope="session")
def model_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as a model file."""
    from fer_lightning.inference.export import export

    file = tmp_path_factory.mktemp("exported") / "model.safetensors"
    export([run], file)
    return file
