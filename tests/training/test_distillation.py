"""Learning from trained networks: the loss, the teachers that are accepted, whole jobs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn

from fer_lightning.data.loader import Batch
from fer_lightning.inference.export import export
from fer_lightning.inference.predictor import NetworkMember
from fer_lightning.models.network import FaceNetwork
from fer_lightning.runs.folder import load_settings
from fer_lightning.training.distillation import Distillation
from fer_lightning.training.module import FERClassifier
from tests.conftest import TINY, Run
from tests.inference.demo.conftest import write_network
from tests.processes import apart

Train = Callable[..., Run]
LEAN = ("precision=fp32", "trainer.max_epochs=1")


class Fixed(nn.Module):
    """A network whose logits do not depend on the image."""

    num_features = 1

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 1)


def teacher(logits: list[float], **options: float) -> NetworkMember:
    network = FaceNetwork(Fixed(logits), len(logits))
    network.head.bias.data = torch.tensor(logits)  # type: ignore[union-attr]
    return NetworkMember(network, [1] * len(logits), **options)  # type: ignore[arg-type]


def test_loss_equals_the_formula_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    z, v, w = rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=3)
    alpha, temperature, label_loss = 0.3, 4.0, 0.7
    soft = (softmax(v / temperature) + softmax(w / temperature)) / 2
    divergence = rel_entr(soft, np.exp(log_softmax(z / temperature, 1))).sum(1).mean()
    distilled = Distillation([teacher(v.tolist()), teacher(w.tolist())], alpha, temperature)
    logits = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    loss = distilled(torch.tensor(label_loss), logits, torch.rand(4, 1, 48, 48))
    assert loss.item() == pytest.approx((1 - alpha) * label_loss + alpha * temperature**2 * divergence, rel=1e-5)
    loss.backward()
    # Its gradient: α·T·(softmax(z/T) − soft) / B.
    expected = alpha * temperature * (softmax(z / temperature, 1) - soft) / 4
    np.testing.assert_allclose(logits.grad, expected, atol=1e-6)


def test_teachers_predict_in_evaluation_mode_and_with_their_adjustment() -> None:
    plain, adjusted = teacher([1.0, 2.0]), teacher([1.0, 2.0], posthoc_tau=1.0)
    adjusted._log_prior = torch.tensor([0.5, -0.5])
    images = torch.rand(3, 1, 48, 48)
    for one, logits in ((plain, [1.0, 2.0]), (adjusted, [0.5, 2.5])):
        targets = Distillation([one], temperature=1).targets(images)
        np.testing.assert_allclose(targets, np.tile(softmax(logits), (3, 1)), rtol=1e-6)
    assert not plain.network.training


def test_adjusted_predictions_of_a_network_follow_those_of_its_teacher() -> None:
    """A network that predicts what its teacher does has nothing to learn, whatever both are adjusted by."""
    counts = [30, 10]
    classifier = FERClassifier(
        ["happy", "sad"],
        counts,
        {"_target_": "tests.interruptions.SmallNetwork"},
        {"_target_": "fer_lightning.training.losses.CrossEntropy"},
        optimizer={},
        schedule={},
        monitor={},
        posthoc_tau=1.0,
    ).eval()
    teacher = NetworkMember(copy.deepcopy(classifier.network), counts, posthoc_tau=1.0)
    classifier.distillation = Distillation([teacher], alpha=1.0, temperature=1.0)
    with torch.no_grad():
        loss = classifier.training_step(Batch(torch.rand(4, 1, 48, 48), torch.zeros(4).long(), torch.arange(4)), 0)
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("teacher")
    ended = apart(folder, *TINY, *LEAN, "model.stem=small", "trainer.max_epochs=4", f"hydra.run.dir={folder}/run")
    assert ended.code == 0, ended.err
    return folder / "run"


def probabilities(run: Path) -> np.ndarray:
    table = pd.read_csv(run / "report/predictions.csv")
    return table.filter(regex="^p_").to_numpy()


def test_distilled_network_follows_its_teacher(taught: Path, train: Train) -> None:
    own, distilled = (
        train(
            *TINY,
            *LEAN,
            "model.stem=small",
            "seed=3",
            "trainer.max_epochs=4",
            f"distill.teachers=[{teachers}]",
            "distill.alpha=1",
        )
        for teachers in ("", taught)
    )
    assert (own.code, distilled.code) == (0, 0), distilled.err
    assert f"teachers {taught}" in distilled.out
    of_teacher = probabilities(taught)
    file = distilled.folder / "distilled.safetensors"
    export([distilled.folder], file)
    commands = [line for line in file.with_suffix(".md").read_text().splitlines() if line.startswith("python train.py")]
    assert [command.split()[-1] for command in commands] == ["hydra.run.dir=run", "hydra.run.dir=outputs/member1"]
    assert "trainer.max_epochs=4" in commands[0] and "distill.teachers=[run]" in commands[1]
    started = train(*TINY, *LEAN, "model.stem=small", f"init_from={distilled.folder}")
    assert started.code == 0, started.err
    export([started.folder], file)
    commands = [line for line in file.with_suffix(".md").read_text().splitlines() if line.startswith("python train.py")]
    names = ["run", distilled.folder.name, "outputs/member1"]  # in the order in which they have to be trained
    assert [command.split()[-1] for command in commands] == [f"hydra.run.dir={name}" for name in names]
    assert f"init_from={distilled.folder.name}" in commands[2]
    apart_own, apart_distilled = (np.abs(probabilities(run.folder) - of_teacher).mean() for run in (own, distilled))
    assert apart_distilled < 0.8 * apart_own


@pytest.mark.parametrize(
    "options", [("mix=mixup", "augment=window"), ("imbalance=ldam_drw",), ("imbalance=two_stage",)]
)
def test_distillation_works_with_mixing_and_strategies(taught: Path, train: Train, options: tuple[str, ...]) -> None:
    ended = train(*TINY, *LEAN, "trainer.max_epochs=2", f"distill.teachers=[{taught}]", *options)
    assert ended.code == 0, ended.err


def test_model_files_and_runs_teach_together(taught: Path, train: Train, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    export([taught], file)
    ended = train(*TINY, *LEAN, f"distill.teachers=[{taught},{file}]")
    assert ended.code == 0, ended.err
    assert len(load_settings(ended.folder)["distill"]["digests"]) == 2


def test_teachers_that_may_have_seen_the_test_images_are_refused(taught: Path, train: Train, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    export([taught], file)
    for model in (taught, file):
        given = (*TINY, *LEAN, "data.synthetic.seed=1", f"distill.teachers=[{model}]")
        ended = train(*given)
        assert ended.code == 1
        assert str(model) in ended.err and "distill.other_data=true" in ended.err
        assert ended.err.count("\n") == 1
        assert train(*given, "distill.other_data=true").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("distill.teachers=[nowhere]",), "nowhere: neither a run folder"),
        (("distill.teachers=[{run}]", "distill.alpha=1.5"), "distill.alpha=1.5"),
        (("distill.teachers=[{run}]", "distill.temperature=0"), "distill.temperature=0"),
        (("distill.teachers=[{run}]", "data.classes=[angry,happy,sad]"), "its classes are"),
        (("distill.teachers=[{run}/config.yaml]",), "neither a run folder nor a .safetensors"),
    ],
)
def test_bad_teachers_end_in_one_line(taught: Path, train: Train, options: tuple[str, ...], message: str) -> None:
    ended = train(*TINY, *LEAN, *(option.replace("{run}", str(taught)) for option in options))
    assert ended.code == 1
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_graphs_do_not_teach(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = write_network(tmp_path / "one.onnx")
    ended = train(*TINY, *LEAN, f"distill.teachers=[{file}]")
    assert ended.code == 1
    assert "an ONNX graph cannot teach" in ended.err


def test_run_is_not_resumed_with_changed_teachers(taught: Path, train: Train, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    export([taught], file)
    given = (*TINY, *LEAN, f"distill.teachers=[{file}]")
    first = train(*given)
    shutil.rmtree(first.folder / "report")
    (first.folder / "metrics.json").unlink()
    export([taught], file, precision="fp32")
    ended = train(f"resume={first.folder}")
    assert ended.code == 1
    assert "distill.digests" in ended.err


def test_a_finished_run_needs_its_teachers_no_longer(taught: Path, train: Train, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    export([taught], file)
    run = train(*TINY, *LEAN, f"distill.teachers=[{file}]")
    file.unlink()
    ended = train(f"resume={run.folder}", folder=run.folder)
    assert ended.code == 0 and "is finished" in ended.out, ended.err
    (run.folder / "metrics.json").unlink()
    ended = train(f"resume={run.folder}", folder=run.folder)
    assert ended.code == 1 and f"{file}: neither a run folder" in ended.err
