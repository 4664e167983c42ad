"""The statistics of batch norm."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import fer_lightning
from fer_lightning.app import CONF, register
from fer_lightning.config.resolve import resolve
from fer_lightning.data.datamodule import FERDataModule
from fer_lightning.runs.folder import load_settings
from fer_lightning.training.imbalance import Stage, Strategy
from fer_lightning.training.job import make_classifier, make_data
from fer_lightning.training.statistics import SyncedBatchNorm, estimate_statistics
from tests.conftest import TINY, Run


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    )


def batches(n: int = 4) -> list[Tensor]:
    return list(torch.rand(n, 16, 1, 12, 12, generator=torch.Generator().manual_seed(1)))


def buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers() if "num_batches" not in name}


def test_statistics_are_those_of_update_bn() -> None:
    ours, theirs = network().eval(), network()
    ours[3], theirs[3] = nn.Dropout(0.0).eval(), nn.Dropout(0.0)
    estimate_statistics(ours, batches())
    update_bn(batches(), theirs)
    torch.testing.assert_close(buffers(ours), buffers(theirs))
    assert not any(module.training for module in ours.modules())
    assert [m.momentum for m in ours.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.1]


def test_dropout_neither_acts_nor_draws() -> None:
    one, other = network().eval(), network().eval()
    other[3] = nn.Dropout(0.0).eval()
    state = torch.get_rng_state()
    estimate_statistics(one, batches())
    assert torch.equal(torch.get_rng_state(), state)
    estimate_statistics(other, batches())
    torch.testing.assert_close(buffers(one), buffers(other))


def test_without_images_or_batch_norm_nothing_changes() -> None:
    net = network().eval()
    before = buffers(net)
    estimate_statistics(net, [])
    torch.testing.assert_close(buffers(net), before)
    estimate_statistics(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)).eval(), batches())
    norm = nn.BatchNorm2d(1, track_running_stats=False).eval()
    estimate_statistics(norm, batches())
    assert norm.running_mean is None


def trained_by(run: Run) -> nn.Module:
    member: Any = fer_lightning.load_model(run.folder).members[0]
    network: nn.Module = member.network
    return network


def data_of(settings: dict[str, Any]) -> FERDataModule:
    return make_data(settings, Strategy.from_config(settings["imbalance"]))


def settings_of(*overrides: str) -> dict[str, Any]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", [*TINY, *overrides, "callbacks=none"]))


@pytest.mark.parametrize("callbacks", ["default", "ema"])
def test_the_best_checkpoint_has_those_of_unaugmented_windows(train: Callable[..., Run], callbacks: str) -> None:
    options = ("augment=window", "augment.brightness=0.5", f"callbacks={callbacks}", "imbalance=balanced")
    run = train(*TINY, "precision=fp32", *options)
    assert run.code == 0, run.err
    data = data_of(load_settings(run.folder))
    images = list(data.unaugmented())
    assert [batch.shape for batch in images] == [(32, 1, 40, 40)] * 4  # of 140; all batches have one size
    trained = trained_by(run)
    again = copy.deepcopy(trained)
    update_bn(images, again)
    torch.testing.assert_close(buffers(again), buffers(trained), rtol=1e-4, atol=1e-5)
    augmented = copy.deepcopy(trained)
    update_bn((batch.images for batch in data.train_dataloader()), augmented)
    first = "backbone.bn1.running_var"
    assert not torch.allclose(buffers(augmented)[first], buffers(trained)[first], rtol=0.05)


def test_they_can_be_left_as_they_are(train: Callable[..., Run]) -> None:
    few = (*TINY, "trainer.max_epochs=1", "augment=light")
    runs = {n: train(*few, f"augment.batch_norm_images={n}") for n in (0, 64)}
    of = {n: trained_by(run) for n, run in runs.items()}
    for name, value in of[0].named_parameters():
        assert torch.equal(value, of[64].get_parameter(name)), name  # training itself does not depend on them
    assert list(data_of(load_settings(runs[0].folder)).unaugmented()) == []
    assert of[0].get_buffer("backbone.bn1.num_batches_tracked") == 4  # steps, of augmented images
    assert of[64].get_buffer("backbone.bn1.num_batches_tracked") == 2  # batches of 32


def test_last_weights_have_them_where_no_checkpoint_is_chosen(train: Callable[..., Run]) -> None:
    few = (*TINY, "trainer.max_epochs=1", "augment=light", "callbacks=none", "trainer.limit_val_batches=0")
    metrics = {}
    for n in (0, 64):
        run = train(*few, f"augment.batch_norm_images={n}")
        assert run.code == 0, run.err
        metrics[n] = json.loads((run.folder / "metrics.json").read_text())
    assert metrics[0]["train/epochs"] == metrics[64]["train/epochs"] == 1
    assert metrics[0]["test/loss"] != metrics[64]["test/loss"]


def test_copies_of_a_classifier_leave_the_data_alone() -> None:
    settings = settings_of("augment=light")
    strategy = Strategy.from_config(settings["imbalance"])
    classifier = make_classifier(settings, strategy, make_data(settings, strategy), Stage(0, 1))
    assert classifier.unaugmented is not None
    assert copy.deepcopy(classifier).unaugmented is None


def test_windows_are_parts_of_training_images() -> None:
    data = data_of(settings_of("augment=window", "imbalance=balanced"))
    first, again = (torch.cat(list(data.unaugmented())) for _ in range(2))
    assert torch.equal(first, again)
    training = torch.from_numpy(np.array(data.faces.images[data.parts.train])).float() / 255
    every = training.unfold(1, 40, 1).unfold(2, 40, 1)
    places = set()
    for window in first[:20, 0]:
        found = (every == window).all(-1).all(-1).nonzero()
        assert len(found) >= 1
        places.add(tuple(found[0, 1:].tolist()))
    assert len(places) > 10


def test_a_negative_number_is_refused(train: Callable[..., Run]) -> None:
    run = train(*TINY, "augment=light", "augment.batch_norm_images=-1")
    assert run.code == 1
    assert "batch_norm_images is a number of images, 0 or more, not -1" in run.err


def test_norms_of_all_gpus_share_their_state_and_are_put_back() -> None:
    ours = nn.ModuleDict({"network": network()}).eval()  # a LightningModule and what it holds
    before, expected = dict(ours.named_modules()), ours["network"](batches()[0])
    layers = SyncedBatchNorm()
    synced = layers.apply(ours)
    assert isinstance(synced["network"][1], nn.SyncBatchNorm)
    torch.testing.assert_close(synced["network"](batches()[0]), expected)
    for name, buffer in synced["network"][1].named_buffers():  # as a move to a GPU would
        synced["network"][1]._buffers[name] = buffer + 1
    again = layers.revert(synced)
    assert dict(again.named_modules()) == before
    assert again["network"][1].running_mean[0] == 1 and again["network"][5].running_mean[0] == 0
