"""What needs a CUDA device: python -m pytest -m gpu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fer_lightning.inference.evaluate import evaluate
from tests.conftest import TINY, Run
from tests.resuming import assert_same, ending, outcome, resumed, without

Train = Callable[..., Run]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ON_GPU = (*without(TINY, "trainer.accelerator"), "accelerator=gpu")


def probabilities(folder: Path) -> np.ndarray:
    return pd.read_csv(folder / "report/predictions.csv").filter(regex="^p_").to_numpy()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(train: Train, precision: str) -> None:
    run = train(*ON_GPU, f"precision={precision}")
    assert run.code == 0, run.err


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=strong_cpu", "model.width=8"],
        ["imbalance=balanced_softmax", "mix=cutmix", "augment=strong", "callbacks=ema"],
        ["imbalance=two_stage"],
        ["distill.teachers=[fer2013-small]", "distill.other_data=true", "model=vgg", "model.width=8"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_part_runs_on_the_device(train: Train, overrides: list[str]) -> None:
    network = [] if any("vgg" in o or "strong" in o for o in overrides) else ["model=resnet18", "model.width=8"]
    given = [o for o in ON_GPU if not o.startswith(("model", "optimizer.lr"))]
    run = train(*overrides, *given, *network)
    assert run.code == 0, run.err


def test_a_network_predicts_on_the_cpu_as_on_the_gpu(train: Train, tmp_path: Path) -> None:
    run = train(*ON_GPU, "precision=fp32")
    assert run.code == 0, run.err
    for accelerator in ("cpu", "gpu"):
        evaluate(run.folder, accelerator=accelerator, out=tmp_path / accelerator)
    difference = np.abs(probabilities(tmp_path / "cpu") - probabilities(tmp_path / "gpu"))
    assert difference.max() < 2e-3  # cuDNN convolves in TF32


def test_a_deterministic_run_resumes_bitwise(train: Train, tmp_path: Path) -> None:
    settings = [*ON_GPU, "trainer.deterministic=true", "trainer.max_epochs=3"]
    whole = train(*settings)
    assert whole.code == 0, whole.err
    cut = train(*settings, *ending("on_train_batch_end", 6, "SIGTERM", tmp_path / "once"), folder=tmp_path / "cut")
    assert cut.code == 143
    again = train(*resumed(tmp_path / "cut"))
    assert again.code == 0, again.err
    assert_same(tmp_path / "cut", outcome(whole.folder))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus_score_every_image_once(train: Train) -> None:
    one, two = (train(*ON_GPU, f"trainer.devices={devices}") for devices in (1, 2))
    assert two.code == 0, two.err
    ids, expected = (pd.read_csv(run.folder / "report/predictions.csv")["id"].tolist() for run in (two, one))
    assert ids == expected
