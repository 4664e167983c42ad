"""One job through the real entry point: the run folder is a contract."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

from fer_lightning.data.table import FER_CLASSES
from tests.conftest import TINY, Run

ROOT = Path(__file__).parents[2]
Train = Callable[..., Run]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run, made once by the command itself in a process of its own."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("finished") / "run"
    command = [sys.executable, "train.py", *TINY, "imbalance=balanced_weighted", f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "weighted avg" in done.stdout
    assert str(folder) in done.stdout
    return folder


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())  # type: ignore[no-any-return]


def test_runs_of_earlier_releases_are_what_they_were(finished: Path, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from fer_lightning.runs.folder import CONFIG, differences, load_settings

    config = OmegaConf.load(finished / CONFIG)
    for key in ("twins", "drop", "relabel", "relabel_digest", "votes", "target", "merge"):
        del config.data[key]
    del config.model.width
    OmegaConf.save(config, tmp_path / CONFIG)
    old, new = load_settings(tmp_path), load_settings(finished)
    assert [change for change in differences(old, new) if change.startswith(("data", "model"))] == []


def test_the_run_folder_holds_what_the_contract_says(finished: Path) -> None:
    for name in (
        ".hydra/config.yaml",
        "config.yaml",
        "train.log",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.json",
        "metrics.csv",
        "partition.json",
        "report/classification_report.csv",
        "report/confusion_matrix.csv",
        "report/confusion_matrix.png",
        "report/curves.png",
        "report/class_counts.png",
        "report/predictions.csv",
        "report/index.html",
    ):
        assert (finished / name).stat().st_size > 0, name
    metrics = metrics_of(finished)
    for split in ("test", "test/clean", "val"):
        for name in ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "loss", "ece", "accuracy_low"):
            assert 0 <= metrics[f"{split}/{name}"] < 50
        for name in ("precision", "recall", "f1", "support"):
            assert all(f"{split}/{name}/{label}" in metrics for label in FER_CLASSES)
    assert metrics["test/accuracy_low"] <= metrics["test/accuracy"] <= metrics["test/accuracy_high"]
    assert metrics["train/images_per_second"] > 0
    assert metrics["train/seconds"] > 0
    assert metrics["data/source"] == "synthetic"


def test_metrics_equal_scikit_learn_on_the_predictions(finished: Path) -> None:
    predictions, metrics = pd.read_csv(finished / "report/predictions.csv"), metrics_of(finished)
    assert len(predictions) == 60
    probabilities = predictions[[f"p_{name}" for name in FER_CLASSES]].to_numpy()
    assert probabilities.sum(1) == pytest.approx(np.ones(60), abs=1e-5)
    assert (np.array(FER_CLASSES)[probabilities.argmax(1)] == predictions["prediction"]).all()
    theirs = sk.classification_report(
        predictions["label"], predictions["prediction"], output_dict=True, zero_division=0
    )
    assert metrics["test/accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-6)
    assert metrics["test/f1_macro"] == pytest.approx(theirs["macro avg"]["f1-score"], abs=1e-6)
    ours = pd.read_csv(finished / "report/classification_report.csv").set_index("class")
    for name in FER_CLASSES:
        for mine, their in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"), ("support",) * 2):
            assert metrics[f"test/{mine}/{name}"] == pytest.approx(theirs[name][their], abs=1e-6)
            assert ours.loc[name, mine] == pytest.approx(theirs[name][their], abs=1e-6)
    matrix = pd.read_csv(finished / "report/confusion_matrix.csv", index_col=0)
    expected = sk.confusion_matrix(predictions["label"], predictions["prediction"], labels=list(FER_CLASSES))
    assert (matrix.to_numpy() == expected).all()


def test_metrics_csv_has_a_row_an_epoch(finished: Path) -> None:
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    best = int(metrics_of(finished)["train/best_epoch"])
    assert float(rows[best]["val/f1_macro"]) == max(float(row["val/f1_macro"]) for row in rows)
    assert float(rows[best]["val/f1_macro"]) == pytest.approx(metrics_of(finished)["val/f1_macro"], abs=1e-6)
    assert all(float(row["train/loss"]) > 0 and "val/recall/disgust" in row for row in rows)


def test_checkpoints_hold_tensors_and_plain_values_only(finished: Path) -> None:
    for name in ("best", "last"):
        state = torch.load(finished / f"checkpoints/{name}.ckpt", weights_only=True)
        assert state["hyper_parameters"]["classes"] == list(FER_CLASSES)


def test_only_training_images_are_resampled(finished: Path) -> None:
    """disgust × 6, surprise × 1.2, happy × 0.8 of the training images; the test images as they are."""
    log = (finished / "train.log").read_text()
    from fer_lightning.data.synthetic import synthetic

    faces = synthetic(n_train=140, n_val=40, n_test=60)
    before = dict(zip(FER_CLASSES, faces.counts(faces.rows("train")).tolist(), strict=True))
    factors = {"disgust": 6, "surprise": 1.2, "happy": 0.8}
    after = ", ".join(f"{name} {round(n * factors.get(name, 1))}" for name, n in before.items())
    assert f"balanced_weighted: {after}" in log
    test = dict(zip(FER_CLASSES, faces.counts(faces.rows("private")).tolist(), strict=True))
    assert {name: metrics_of(finished)[f"test/support/{name}"] for name in FER_CLASSES} == test


def test_evaluate_gives_the_numbers_of_the_run(finished: Path, tmp_path: Path) -> None:
    from fer_lightning.inference.evaluate import evaluate

    again, metrics = evaluate(finished, out=tmp_path / "again"), metrics_of(finished)
    for name, value in again.items():
        if name.startswith("test/"):
            assert value == pytest.approx(metrics[name], abs=1e-6), name
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "again/report/predictions.csv"), pd.read_csv(finished / "report/predictions.csv")
    )
    val = evaluate(finished, split="val", out=tmp_path / "val")
    assert val["test/accuracy"] == pytest.approx(metrics["val/accuracy"], abs=1e-6)


def test_the_same_seed_gives_the_same_run(train: Train) -> None:
    first, same = (train(*TINY, "trainer.max_epochs=1", "seed=0") for _ in range(2))
    other = train(*TINY, "trainer.max_epochs=1", "seed=1")
    assert first.code == same.code == other.code == 0
    weights = [
        torch.load(r.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for r in (first, same, other)
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["network.fc.weight"], weights[2]["network.fc.weight"])


def test_a_run_folder_is_never_written_over(train: Train, finished: Path) -> None:
    before = (finished / "metrics.json").read_bytes()
    again = train(*TINY, folder=finished)
    assert again.code == 1
    assert "holds a run already" in again.err
    assert (finished / "metrics.json").read_bytes() == before


def test_a_folder_in_which_nothing_was_trained_may_be_used_again(train: Train, tmp_path: Path) -> None:
    assert train(*TINY, "model.depth=51", folder=tmp_path / "mine").code == 1
    assert train(*TINY, folder=tmp_path / "mine").code == 0
    assert "51" not in (tmp_path / "mine" / ".hydra" / "overrides.yaml").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ["protocol=report", "imbalance=weighted", "schedule=plateau", "optimizer=adamw", "optimizer.lr=0.001"],
        ["protocol=kfold", "protocol.fold=2", "protocol.folds=3", "augment=strong", "schedule=onecycle"],
        ["imbalance=balanced", "augment=albumentations", "precision=bf16", "schedule=constant"],
        ["augment=none", "model.stem=small", "model.dropout=0.2", "imbalance.loss.label_smoothing=0.1", "logger=csv"],
        ["monitor.metric=val/loss", "monitor.mode=min", "callbacks.early_stopping=null", "data.classes=[sad,happy]"],
        ["callbacks=none", "trainer.limit_test_batches=1", "data.eval_batch_size=7"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_groups_combine(train: Train, overrides: list[str]) -> None:
    run = train(*TINY, "trainer.max_epochs=1", *overrides)
    assert run.code == 0, run.err
    assert (run.folder / "report/index.html").exists()


def test_the_network_can_learn_by_heart(train: Train) -> None:
    run = train(
        *TINY, "data.synthetic.n_train=64", "augment=none", "optimizer=adamw", "optimizer.lr=0.001",
        "schedule=constant", "trainer.max_epochs=14", "trainer.check_val_every_n_epoch=14",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert pd.read_csv(run.folder / "metrics.csv")["train/accuracy"].iloc[-1] > 0.9


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_experiment_trains(train: Train, experiment: str) -> None:
    small = [option for option in TINY if not option.startswith(("model", "optimizer"))]
    run = train(f"experiment={experiment}", *small, "model.depth=18", "model.width=8", "trainer.max_epochs=1")
    assert run.code == 0, run.err
    assert metrics_of(run.folder)["test/loss"] < 4


@pytest.mark.slow
def test_the_quickstart_learns_every_class(train: Train) -> None:
    run = train("experiment=quickstart", "trainer.accelerator=cpu", "logger=none")
    assert run.code == 0, run.err
    metrics = metrics_of(run.folder)
    assert metrics["test/accuracy_low"] > 0.45
    recall = {name: value for name, value in metrics.items() if name.startswith("test/recall/")}
    assert min(recall.values()) > 1.5 / 7, recall
