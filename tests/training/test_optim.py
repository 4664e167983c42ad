"""Learning rates step by step, and what weight decay touches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fer_lightning.config import instantiate
from fer_lightning.errors import UserError
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.resnet import ResNet
from fer_lightning.models.vit import ViT
from fer_lightning.training.muon import COEFFICIENTS, Muon, orthogonalised
from fer_lightning.training.optim import layers_of, parameter_groups

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


def test_embeddings_are_neither_decayed_nor_orthogonalised() -> None:
    network = FaceNetwork(ViT(width=24, depth=1, heads=2), 7)
    optimizer = Muon(parameter_groups(network, 0.1, mark_head=True), lr=0.02)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name in ("pos_embed", "cls_token"):
        group = of[id(network.backbone.get_parameter(name))]
        assert (group["weight_decay"], group["muon"]) == (0.0, False)
    kernel = of[id(network.backbone.get_parameter("patch_embed.proj.weight"))]
    assert (kernel["weight_decay"], kernel["muon"]) == (0.1, True)


def test_bad_fractions_and_arguments_name_their_key() -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup"):
        rates("cosine", warmup=1.5)
    with pytest.raises(UserError, match="schedule"):
        rates("cosine", wormup=0.5)


@pytest.mark.parametrize("rank", [3, 24])
def test_products_of_square_matrices_are_the_same_iteration(rank: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 24, rank) @ torch.randn(2, rank, 90)
    for one, both in zip(matrices, orthogonalised(matrices), strict=True):
        x = one.double() / one.double().norm()
        for _ in range(5):
            gram = x @ x.T
            x = COEFFICIENTS[0] * x + (COEFFICIENTS[1] * gram + COEFFICIENTS[2] * gram @ gram) @ x
        torch.testing.assert_close(both.double(), x, rtol=1e-3, atol=1e-4)


def test_newton_schulz_gives_the_nearest_orthogonal_matrix() -> None:
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8), (6, 6)):
        matrix = torch.randn(shape)
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        ours = orthogonalised(matrix)
        inside = u.T @ ours @ vt.T  # diagonal: the same singular vectors
        singular = inside.diagonal()
        assert ((singular > 0.6) & (singular < 1.3)).all()
        assert (inside - torch.diag(singular)).abs().max() < 1e-4


def test_adamw_inside_muon_equals_pytorchs() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.zeros(5))
    theirs.data.copy_(ours)
    muon = Muon([{"params": [ours], "weight_decay": 0.1}], adam_lr=0.01)
    adamw = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(5)
        for parameter, optimizer in ((ours, muon), (theirs, adamw)):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has no Muon")
def test_muon_equals_pytorchs_on_matrices() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Parameter(torch.randn(12, 7)), torch.nn.Parameter(torch.zeros(12, 7))
    theirs.data.copy_(ours)
    muon = Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True)
    for _ in range(3):
        gradient = torch.randn(12, 7)
        for parameter, optimizer in ((ours, muon), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # theirs iterates in bfloat16


def test_muon_leaves_the_head_and_vectors_to_adamw_and_keeps_the_layers_rates() -> None:
    network = FaceNetwork(ResNet(18, width=8), 7)
    groups = parameter_groups(network, 0.05, 0.02, 0.5, mark_head=True)
    optimizer = Muon(groups, lr=0.02, adam_lr=0.004)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(of) == len(list(network.parameters()))
    last = max(layers_of(network).values())
    for name, parameter in network.named_parameters():
        group = of[id(parameter)]
        assert group["muon"] == (parameter.ndim > 1 and not name.startswith("head."))
        assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)
        rate = 0.02 if group["muon"] else 0.004
        assert group["lr"] == pytest.approx(rate * 0.5 ** (last - layers_of(network)[name]))


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"momentum": 1.0}, {"steps": 0}, {"betas": (0.9, 1.0)}])
def test_muon_reports_impossible_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Muon([torch.nn.Parameter(torch.zeros(2, 2))], **settings)  # type: ignore[arg-type]
