"""The VGG against the same network written with functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lightning.models.vgg import VGG


def by_hand(weights: dict[str, Tensor], x: Tensor, convs: list[int]) -> Tensor:
    def normed(x: Tensor, conv: str, norm: str, pool: bool = False) -> Tensor:
        x = F.conv2d(x, weights[f"{conv}.weight"], padding=1)
        x = F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-torch.inf), 2) if pool else x
        mean, var, scale, shift = (weights[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[
            :, None, None
        ]

    for stage, n in enumerate(convs):
        x = normed(x, f"stages.{stage}.conv1", f"stages.{stage}.bn1", pool=True).relu()
        y = x
        for i in range(n - 1):  # in the branch: convolution, norm, ReLU, convolution, norm …
            y = normed(y.relu() if i else y, f"stages.{stage}.branch.{3 * i}", f"stages.{stage}.branch.{3 * i + 1}")
        x = (x + y).relu() if n > 1 else x
    return x.mean((2, 3))


@pytest.mark.parametrize("side", [48, 40, 37])
def test_vgg_equals_the_network_written_with_functions(side: int) -> None:
    torch.manual_seed(0)
    convs = [1, 3, 2, 2]
    network = VGG(width=6, convs=convs)
    network(torch.rand(8, 1, side, side))  # moves the running statistics
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    images = torch.rand(3, 1, side, side)
    expected = by_hand(network.state_dict(), images, convs)
    torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-5)
    assert network.num_features == expected.shape[1] == 48


@pytest.mark.parametrize("settings", [{"width": 0}, {"convs": []}, {"convs": [1, 0]}])
def test_impossible_sizes_are_reported(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        VGG(**settings)  # type: ignore[arg-type]
