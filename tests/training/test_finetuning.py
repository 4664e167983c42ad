"""Starting from trained weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fer_lightning.config import instantiate
from fer_lightning.inference.export import export
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.resnet import ResNet
from fer_lightning.runs.checkpoints import read_checkpoint
from fer_lightning.runs.folder import load_settings
from fer_lightning.training.optim import layers_of, parameter_groups
from tests.conftest import SMALL, TINY, Run, assert_refused_in_one_line
from tests.processes import apart

Train = Callable[..., Run]
DATA = tuple(setting for setting in TINY if not setting.startswith("model"))
FROZEN_START = ("trainer.max_epochs=1", "optimizer.lr=1e-12", "precision=fp32", "callbacks=none")
"""After a run with these the weights are those it started from, statistics of norms aside."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    ended = apart(folder, *TINY, "model.width=4", "precision=fp32", f"hydra.run.dir={folder}/run")
    assert ended.code == 0, ended.err
    return folder / "run"


def weights(run: Path, name: str = "best") -> dict[str, torch.Tensor]:
    return read_checkpoint(run / f"checkpoints/{name}.ckpt")["state_dict"]  # type: ignore[no-any-return]


def test_network_and_weights_are_those_of_the_source(source: Path, train: Train) -> None:
    ended = train(*DATA, f"init_from={source}", "seed=5", "trainer.max_epochs=1", "optimizer.lr=1e-12")
    assert ended.code == 0, ended.err
    assert f"weights of {source}, head included" in ended.out
    assert load_settings(ended.folder)["model"] == load_settings(source)["model"]
    theirs, ours = weights(source), weights(ended.folder)
    for name, parameter in theirs.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(ours[name], parameter)


def test_head_is_new_where_the_classes_differ(source: Path, train: Train, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    export([source], file, precision="fp32")
    options = (*DATA, f"init_from={file}", "data.merge={disgust: angry, fear: angry}", "optimizer.lr=1e-12")
    ended = train(*options, "trainer.max_epochs=1")
    assert ended.code == 0, ended.err
    assert "with a new head" in ended.out
    theirs, ours = weights(source), weights(ended.folder)
    assert len(ours["network.head.bias"]) == 5
    torch.testing.assert_close(ours["network.backbone.conv1.weight"], theirs["network.backbone.conv1.weight"])


def test_typed_keys_change_the_adopted_network(source: Path, train: Train) -> None:
    ended = train(*DATA, f"init_from={source}", "model.dropout=0.25", "trainer.max_epochs=1")
    assert ended.code == 0, ended.err
    model = load_settings(ended.folder)["model"]
    assert model == {**load_settings(source)["model"], "dropout": 0.25}


def test_network_of_other_sizes_is_reported(source: Path, train: Train) -> None:
    ended = train(*TINY, f"init_from={source}", "model.width=16")
    assert ended.code == 1
    assert "do not fit the configured network" in ended.err
    assert ended.err.count("\n") == 1


def test_resuming_needs_no_source(source: Path, train: Train, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    first = train(*DATA, f"init_from={copy}", "trainer.max_epochs=1")
    assert first.code == 0, first.err
    shutil.rmtree(copy)
    longer = train(f"resume={first.folder}", "trainer.max_epochs=2", "allow_changes=true")
    assert longer.code == 0, longer.err
    assert "start    " not in longer.out


def test_resuming_reports_what_has_been_typed_since(source: Path, train: Train, tmp_path: Path) -> None:
    first = train(*DATA, f"init_from={source}", "model.dropout=0.25", "trainer.max_epochs=1")
    assert first.code == 0, first.err
    (first.folder / "metrics.json").unlink()
    for changed in ("model.dropout=0.5", "init_from=fer2013-small"):
        again = train(f"resume={first.folder}", changed)
        assert again.code == 1
        assert changed.partition("=")[0] in again.err, again.err
    assert train(f"resume={first.folder}", "model.dropout=0.25").code == 0


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=[pytest.mark.ddp, pytest.mark.slow])])
def test_a_network_of_ones_own_is_started_from_and_taught_by_with_trust(train: Train, devices: int) -> None:
    own = train(*SMALL, "trainer.max_epochs=1")
    assert own.code == 0, own.err
    for options in ([f"init_from={own.folder}"], [f"distill.teachers=[{own.folder}]", "model=vgg", "model.width=4"]):
        given = (*DATA, *options, "trainer.max_epochs=1", f"trainer.devices={devices}")
        refused = train(*given)
        assert refused.code == 1
        assert "SmallNetwork" in refused.err and "trust=true to train.py" in refused.err
        ended = train(*given, "trust=true")
        assert ended.code == 0, ended.err
        assert "trust" not in (ended.folder / "config.yaml").read_text()


def test_backbone_is_frozen_at_first_and_trained_afterwards(source: Path, train: Train) -> None:
    options = (*DATA, f"init_from={source}", "finetune.freeze_epochs=1", "trainer.max_epochs=2", "precision=fp32")
    ended = train(*options)
    assert ended.code == 0, ended.err
    name = "network.backbone.layer4.1.conv2.weight"
    start, frozen = weights(source)[name], weights(ended.folder, "first_stage/last")
    torch.testing.assert_close(frozen[name], start, rtol=0, atol=0)
    torch.testing.assert_close(
        frozen["network.backbone.bn1.running_mean"], weights(source)["network.backbone.bn1.running_mean"]
    )
    assert not torch.equal(frozen["network.head.weight"], weights(source)["network.head.weight"])
    assert not torch.equal(weights(ended.folder, "last")[name], start)
    assert len((ended.folder / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "plateau", "constant"])
def test_every_schedule_keeps_the_ratio_of_the_layers_rates(schedule: str) -> None:
    network = FaceNetwork(ResNet(18, width=8), 7)
    groups = parameter_groups(network, 0.05, lr=0.1, layer_decay=0.5, backbone_lr_factor=0.1)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler, _ = instantiate.call(
        "schedule", {"_target_": f"fer_lightning.training.optim.{schedule}"}, optimizer, 20, "max"
    )
    last = len(set(layers_of(network).values())) - 1
    for _ in range(20):
        optimizer.step()
        scheduler.step(*([0.0] if schedule == "plateau" else []))  # type: ignore[arg-type]
        rates = {
            name: group["lr"]
            for group in optimizer.param_groups
            for parameter in group["params"]
            for name, other in network.named_parameters()
            if other is parameter
        }
        top = rates["head.weight"]
        for name, layer in layers_of(network).items():
            assert rates[name] == pytest.approx(top * 0.5 ** (last - layer) * (1 if layer == last else 0.1))


def test_layers_are_counted_from_the_input() -> None:
    layers = layers_of(FaceNetwork(ResNet(18, width=8), 7))
    assert [layers[f"backbone.{name}"] for name in ("conv1.weight", "bn1.bias", "layer1.0.conv1.weight")] == [0, 1, 2]
    assert layers["backbone.layer4.1.bn2.weight"] == 5
    assert layers["head.bias"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("init_from=nowhere",), "nowhere: neither a run folder"),
        (("finetune.freeze_epochs=2",), "finetune.freeze_epochs=2"),
        (("finetune.freeze_epochs=1", "imbalance=two_stage"), "contradicts imbalance=two_stage"),
        (("finetune.freeze_epochs=1", "trainer.max_time=00:01:00:00"), "limit trainer.max_epochs"),
        (("finetune.layer_decay=0",), "finetune.layer_decay=0"),
        (("finetune.backbone_lr_factor=0",), "finetune.backbone_lr_factor=0"),
        (("model.pretrained=true",), "pretrained"),
    ],
)
def test_bad_settings_end_in_one_line(train: Train, options: tuple[str, ...], message: str) -> None:
    assert_refused_in_one_line(train(*TINY, *options), re.escape(message))


def test_ensembles_are_no_start(source: Path, tmp_path: Path, train: Train) -> None:
    file = tmp_path / "two.safetensors"
    export([source, source], file)
    ended = train(*DATA, f"init_from={file}")
    assert ended.code == 1
    assert "2 networks; name one" in ended.err
