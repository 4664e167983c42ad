"""Learning rates step by step, and what weight decay touches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fer_lightning.config import instantiate
from fer_lightning.errors import UserError
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.resnet import ResNet
from fer_lightning.training.optim import parameter_groups

ROOM = "fer_lightning.training.optim."


def rates(name: str, steps: int = 100, **arguments: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, interval = instantiate.call("schedule", {"_target_": ROOM + name, **arguments}, optimizer, steps, "max")
    assert interval == "step"
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_warms_up_and_ends_at_the_final_rate() -> None:
    seen = rates("cosine", warmup=0.1, final=0.01)
    assert seen[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert seen[10] == pytest.approx(2.0)
    assert seen[55] == pytest.approx(2 * (0.01 + 0.99 / 2), abs=1e-6)  # half-way
    assert seen[-1] == pytest.approx(0.02, abs=1e-3)
    assert all(a >= b for a, b in pairwise(seen[10:]))


def test_onecycle_is_pytorch_s() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2.0, total_steps=101, pct_start=0.3, div_factor=25, final_div_factor=1000, cycle_momentum=False
    )
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates("onecycle", warmup=0.3, start=0.04, final=4e-5) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_onecycle_of_a_few_steps(steps: int) -> None:
    assert all(0 < rate <= 2 for rate in rates("onecycle", steps, warmup=0.3))


def test_constant_after_warmup() -> None:
    seen = rates("constant", warmup=0.2)
    assert seen[0] == pytest.approx(0.1)
    assert seen[19:] == pytest.approx([2.0] * 81)


def test_plateau_lowers_the_rate_when_nothing_gets_better() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    node = {"_target_": ROOM + "plateau", "factor": 0.5, "patience": 2}
    scheduler, interval = instantiate.call("schedule", node, optimizer, 100, "max")
    assert interval == "epoch"
    for value in (0.5, 0.5, 0.5, 0.5):
        scheduler.step(value)  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_weight_decay_spares_biases_and_norms() -> None:
    network = FaceNetwork(ResNet(18), 7)
    decayed, spared = parameter_groups(network, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(network.parameters()))
    assert {p.ndim for p in spared["params"]} == {1}
    assert 1 not in {p.ndim for p in decayed["params"]}


def test_bad_fractions_and_arguments_name_their_key() -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup"):
        rates("cosine", warmup=1.5)
    with pytest.raises(UserError, match="schedule"):
        rates("cosine", wormup=0.5)
