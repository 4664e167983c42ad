"""The network against the paper's sizes and an independent implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fer_lightning.models.depth import DropPath
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.preprocessing import Preprocessing
from fer_lightning.models.resnet import ResNet
from fer_lightning.models.vgg import VGG

PARAMETERS = {18: 11_173_831, 34: 21_281_991, 50: 23_516_103, 101: 42_508_231, 152: 58_151_879}
"""One input channel, seven classes: torchvision's published counts less two input channels and 993 classes."""

GOLDEN = {
    18: [
        [0.238342, 0.001029, -0.017425, 0.23198, -0.015516, -0.096414, -0.107948],
        [0.239338, 0.010055, -0.024011, 0.230772, -0.006998, -0.089495, -0.096554],
    ],
    50: [
        [0.040443, -0.00501, -0.013802, -0.134905, -0.152276, 0.019681, 0.072861],
        [0.039456, -0.006815, -0.012445, -0.131236, -0.151183, 0.022988, 0.071094],
    ],
}


def numbered_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that any implementation with the same parameter names can be given, from PCG64's uniform numbers."""
    weights = {}
    for key, old in sorted(state.items()):
        rng = np.random.default_rng(list(key.encode()))
        shape = tuple(old.shape)
        if key.endswith("num_batches_tracked"):
            new = np.zeros(shape, dtype=np.int64)
        elif key.endswith("running_var"):
            new = 0.5 + rng.random(shape)
        elif len(shape) == 1 and key.endswith("weight"):
            new = 0.2 + 0.4 * rng.random(shape)
        elif len(shape) == 1:
            new = 0.2 * (rng.random(shape) - 0.5)
        else:
            new = (rng.random(shape) - 0.5) * np.sqrt(12 * 2 / np.prod(shape[1:]))
        weights[key] = torch.from_numpy(np.asarray(new)).to(old.dtype)
    return weights


def faces() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((2, 1, 48, 48))).float()


def network(depth: int, **settings: Any) -> FaceNetwork:
    """A network whose preprocessing leaves images as they are."""
    return FaceNetwork(ResNet(depth, **settings), 7, Preprocessing(mean=(0.0,), std=(1.0,)))


def as_torchvision(ours: FaceNetwork) -> dict[str, str]:
    """Our parameter names by torchvision's."""
    return {n.removeprefix("backbone.").replace("head.", "fc."): n for n in ours.state_dict()}


@pytest.mark.parametrize(("depth", "parameters"), PARAMETERS.items())
def test_parameter_counts(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in network(depth).parameters()) == parameters


@pytest.mark.parametrize("depth", [18, 50])
def test_logits_equal_those_of_torchvision(depth: int) -> None:
    """GOLDEN holds what torchvision 0.28's network of the same depth gave for the same weights and faces;
    tests/models/test_timm.py compares with torchvision itself."""
    ours = network(depth).eval()
    names = as_torchvision(ours)
    weights = numbered_weights({theirs: ours.state_dict()[name] for theirs, name in names.items()})
    ours.load_state_dict({names[theirs]: value for theirs, value in weights.items()})
    with torch.no_grad():
        logits = ours(faces())
    torch.testing.assert_close(logits, torch.tensor(GOLDEN[depth]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stem", "side"), [("report", 2), ("small", 6)])
def test_stems_leave_the_documented_map(stem: str, side: int) -> None:
    backbone = ResNet(18, stem=stem)  # type: ignore[arg-type]
    assert backbone.forward_features(faces()).shape == (2, 512, side, side)
    assert backbone(faces()).shape == (2, backbone.num_features)


@pytest.mark.parametrize("depth", [18, 50])
def test_width_sets_the_channels_of_every_layer(depth: int) -> None:
    whole, half = (dict(ResNet(depth, width=width).named_parameters()) for width in (64, 32))
    for name, parameter in whole.items():
        inside = [size // 2 if size >= 64 else size for size in parameter.shape]
        assert list(half[name].shape) == inside, name


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("stem", ["report", "small"])
def test_every_parameter_gets_a_gradient(depth: int, stem: str) -> None:
    ours = network(depth, stem=stem, width=16, zero_init_last=False)
    ours(torch.rand(4, 1, 48, 48)).square().mean().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_blocks_start_as_identities() -> None:
    block = ResNet(50).layer1[1].eval()
    x = torch.rand(2, 256, 6, 6)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("arguments", [{"depth": 42}, {"stem": "big"}, {"width": 0}])
def test_unknown_networks_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ResNet(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [partial(ResNet, 18, width=8), partial(ResNet, 50, width=8), partial(VGG, width=8)])
def test_stochastic_depth_skips_branches_in_training_alone(make: Callable[..., torch.nn.Module]) -> None:
    torch.manual_seed(0)
    plain, deep = make(), make(drop_path=0.9)
    deep.load_state_dict(plain.state_dict())
    images = torch.rand(16, 1, 48, 48)
    torch.testing.assert_close(deep.eval()(images), plain.eval()(images), rtol=0, atol=0)
    branches = [module for module in deep.modules() if isinstance(module, DropPath) and module.p > 0]
    assert max(module.p for module in branches) == pytest.approx(0.9)
    seen: list[torch.Tensor] = []
    branches[-1].register_forward_hook(lambda _, inputs, output: seen.append(output / inputs[0]))
    if isinstance(deep, ResNet):  # whose branches are zero at first
        for module in deep.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
    deep.train()(images)
    kept = [factor[factor.isfinite()].mean().item() for factor in seen[0]]
    assert {round(k) for k in kept} == {0, 10}  # skipped, or scaled so that the mean stays
