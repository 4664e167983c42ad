"""From a run folder to class probabilities."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from fer_lightning import Predictor, load_model
from fer_lightning.errors import UserError
from fer_lightning.inference.evaluate import evaluate
from fer_lightning.inference.load import load, together
from fer_lightning.metrics.calibration import NEVER_SURE, Calibration


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, for tests that change it."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def saved(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "report/predictions.csv")


@pytest.mark.parametrize("batch_size", [None, 1, 7, 60])
def test_probabilities_are_those_of_the_run(batch_size: int | None, run: Path, test_images: NDArray[np.uint8]) -> None:
    predictor = load_model(run, accelerator="cpu")
    predictor.batch_size = batch_size or predictor.batch_size
    table = saved(run)
    probabilities = predictor.logits(test_images).double().softmax(1).numpy()
    columns = [f"p_{name}" for name in predictor.classes]
    assert probabilities.shape == (60, 7)
    np.testing.assert_allclose(probabilities, table[columns].to_numpy(), atol=2e-6)
    assert [predictor.classes[i] for i in probabilities.argmax(1)] == table["prediction"].tolist()


def test_prediction_of_an_image_does_not_depend_on_the_others(run: Path, test_images: NDArray[np.uint8]) -> None:
    predictor = load_model(run, accelerator="cpu")
    some = [3, 50, 17]
    np.testing.assert_allclose(
        predictor.logits(test_images[some]), predictor.logits(test_images)[some], atol=1e-5, rtol=1e-4
    )


def test_no_images_give_no_probabilities(run: Path, test_images: NDArray[np.uint8]) -> None:
    assert load_model(run, accelerator="cpu").probabilities(test_images[:0]).shape == (0, 7)


def test_a_mean_with_a_model_that_is_never_sure_is_never_sure(run: Path) -> None:
    sure = load(run, accelerator="cpu")
    models = [replace(sure, calibration=Calibration(2.0, threshold)) for threshold in (0.5, 0.7, NEVER_SURE)]
    for chosen, expected in ((models[:2], 0.6), (models, NEVER_SURE)):
        calibration = together(chosen).calibration
        assert calibration is not None and calibration.threshold == pytest.approx(expected)


def test_posthoc_adjustment_can_be_changed(run: Path, test_images: NDArray[np.uint8]) -> None:
    adjusted, plain = (together([load(run, accelerator="cpu", posthoc_tau=tau)]) for tau in (None, 0.0))
    counts = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]["class_counts"]
    expected = plain.logits(test_images) - 0.5 * torch.log(torch.tensor(counts) / sum(counts))
    torch.testing.assert_close(adjusted.logits(test_images), expected)


@pytest.mark.parametrize("images", [np.zeros((2, 48, 48)), np.zeros((48, 48), np.uint8), np.zeros((2, 1, 9, 9), "u1")])
def test_images_of_another_type_or_shape_are_refused(images: NDArray[Any], run: Path) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \(N, H, W\), not"):
        load_model(run, accelerator="cpu").probabilities(images)


def change(run: Path, **changes: Any) -> None:
    """Change hyperparameters of the best checkpoint; None removes one."""
    path = run / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    own = checkpoint["hyper_parameters"]
    for name, value in changes.items():
        own.pop(name)
        if value is not None:
            own[name] = value
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["happy", "sad"]}, "the tensor 'head.bias' does not fit its network"),
        ({"class_counts": None}, "class_counts"),
        ({"class_counts": [1, 2]}, "class_counts must hold 7 numbers"),
        ({"model": {"_target_": "fer_lightning.models.resnet.ResNet", "depth": 42}}, "depth must be one of"),
        ({"model": None}, "model"),
        ({"model": "resnet"}, "damaged"),
    ],
    ids=str,
)
def test_checkpoint_with_wrong_hyperparameters_is_refused(changes: dict[str, Any], message: str, copy: Path) -> None:
    change(copy, **changes)
    with pytest.raises(UserError, match=message) as error:
        load_model(copy, accelerator="cpu")
    assert str(error.value).startswith(f"{copy}/checkpoints/best.ckpt: ")
    assert "\n" not in str(error.value)


def test_run_without_a_best_checkpoint_is_refused(copy: Path) -> None:
    (copy / "checkpoints/best.ckpt").unlink()
    with pytest.raises(UserError, match="no best checkpoint"):
        load_model(copy)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("trainer.precision", None, "trainer.precision is missing"), ("data.eval_batch_size", 0, "use 1 or more")],
)
def test_fault_of_the_config_names_the_config(key: str, value: Any, message: str, copy: Path) -> None:
    config: Any = OmegaConf.load(copy / "config.yaml")
    group, name = key.split(".")
    del config[group][name]
    if value is not None:
        config[group][name] = value
    OmegaConf.save(config, copy / "config.yaml")
    with pytest.raises(UserError, match=message) as error:
        load_model(copy)
    assert str(error.value).startswith(f"{copy}/config.yaml: ")


def test_folder_that_evaluate_cannot_write_is_reported_before_scoring(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "of_members", lambda *_: pytest.fail("scored"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder with --out"):
        evaluate([run], out=tmp_path / "file" / "out", accelerator="cpu")
