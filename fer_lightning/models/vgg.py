"""A small VGG with shortcuts: stages of 3×3 convolutions and max pooling (Simonyan & Zisserman 2015, arXiv:1409.1556).

Each stage pools after its first convolution, so that the others work on a quarter of the positions, and a shortcut
leads around those others (He et al. 2016, arXiv:1512.03385).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from fer_lightning.models.depth import DropPath, drop_rates
from fer_lightning.models.resnet import conv3x3


class Stage(nn.Module):
    """Maps (B, in_channels, H, W) to (B, width, ⌈H/2⌉, ⌈W/2⌉).

    Args:
        in_channels, width: channels.
        convs: number of convolutions; the shortcut leads around those after the first.
        drop_path: probability of taking the shortcut alone in training.
    """

    def __init__(self, in_channels: int, width: int, convs: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(in_channels, width), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.relu = nn.ReLU(inplace=True)
        branch: list[nn.Module] = []
        for i in range(convs - 1):
            branch += [nn.ReLU(inplace=True)] if i else []
            branch += [conv3x3(width, width), nn.BatchNorm2d(width)]
        self.branch = nn.Sequential(*branch)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.pool(self.conv1(x))))
        return cast(Tensor, self.relu(x + self.drop_path(self.branch(x)))) if len(self.branch) else x


class VGG(nn.Module):
    """A backbone: images (B, in_channels, H, W) to features (B, num_features).

    Args:
        in_channels: 1 for grey faces.
        width: channels of the first stage, doubled by each later stage.
        convs: convolutions of each stage.
        drop_path: probability of skipping the branch of the last stage in training, growing linearly from 0 for the
            first one (Huang et al. 2016, arXiv:1603.09382).

    Attributes:
        num_features: channels of the last stage.
        saliency_layers: by title the last two layers whose maps `fer-lightning explain` shows.

    Raises:
        ValueError: a width or a number of convolutions below 1, no stages, or `drop_path` without an effect.
    """

    def __init__(
        self, in_channels: int = 1, width: int = 32, convs: Sequence[int] = (1, 3, 3, 2), drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be 1 or more, not {width}")
        if not convs or min(convs) < 1:
            raise ValueError(f"convs holds a number of convolutions, 1 or more, for each stage, not {list(convs)}")
        channels = [in_channels, *(width * 2**i for i in range(len(convs)))]
        rates = drop_rates(drop_path, len(convs))
        if drop_path and not any(rate for rate, n in zip(rates, convs, strict=True) if n > 1):
            raise ValueError(
                f"drop_path={drop_path} has no effect with convs={list(convs)}: no stage after the first has a "
                "shortcut, for which it needs 2 convolutions or more"
            )
        stages = zip(channels, channels[1:], convs, rates, strict=False)
        self.stages = nn.Sequential(*(Stage(*of_one) for of_one in stages))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = channels[-1]
        self.saliency_layers = {f"Stage {i + 1}": f"stages.{i}" for i in range(len(convs))[-2:]}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # see ResNet
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, from 0 at the input, for layer-wise learning rates: its stage."""
        return int(parameter.split(".")[1])

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.avgpool(self.stages(x)).flatten(1))
