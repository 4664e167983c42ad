"""ResNet from scratch: He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385).

Parameter names and the position of the bottleneck's stride (on its 3×3 convolution, "v1.5") are torchvision's, so that
a state dict of the same depth, stem and channel count, without `fc`, loads either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from fer_lightning.models.depth import DropPath, drop_rates

Stem = Literal["report", "small"]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around an identity shortcut (figure 5, left)."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        out: Tensor = self.relu(self.drop_path(x) + shortcut)
        return out


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions around an identity shortcut (figure 5, right)."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        out: Tensor = self.relu(self.drop_path(x) + shortcut)
        return out


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Block and blocks per stage of the five networks of table 1."""


class ResNet(nn.Module):
    """A backbone: images (B, in_channels, H, W) to features (B, num_features).

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: channels of the stem and the first stage, doubled by each later stage; 64 in the paper. Arithmetic and
            parameters grow with its square.
        in_channels: 1 for grey faces.
        stem: `report` is the paper's 7×7/2 convolution and 3×3/2 max pooling, which leaves a 2×2 map of a 48×48 face;
            `small` is a 3×3/1 convolution without pooling, which leaves 6×6 at about 15 times the arithmetic.
        zero_init_last: start every block as an identity by a zero scale in its last norm (Goyal et al. 2017,
            arXiv:1706.02677, section 5.1).
        drop_path: probability of skipping the last block in training, growing linearly from 0 for the first one (Huang
            et al. 2016, arXiv:1603.09382).

    Attributes:
        num_features: 8 × width × the expansion of the blocks (1 up to depth 34, then 4).
        saliency_layers: by title the layers whose maps `fer-lightning explain` shows.

    Raises:
        ValueError: an unknown depth or stem, or a width below 1.
    """

    saliency_layers: ClassVar[dict[str, str]] = {"Stage 3": "layer3", "Stage 4": "layer4"}

    def __init__(
        self,
        depth: int = 50,
        in_channels: int = 1,
        stem: Stem = "report",
        zero_init_last: bool = True,
        width: int = 64,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {sorted(DEPTHS)}, not {depth}")
        if stem not in ("report", "small"):
            raise ValueError(f"stem must be 'report' or 'small', not '{stem}'")
        if width < 1:
            raise ValueError(f"width must be 1 or more, not {width}")
        block, blocks = DEPTHS[depth]
        large = stem == "report"
        self.conv1 = nn.Conv2d(
            in_channels, width, 7 if large else 3, stride=2 if large else 1, padding=3 if large else 1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = self._stages(block, blocks, width, drop_path)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = 8 * width * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if not module.weight.is_meta:  # there PyTorch would import its compiler to draw nothing
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_last and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    @staticmethod
    def _stages(
        block: type[BasicBlock] | type[Bottleneck], blocks: Sequence[int], first_width: int, drop_path: float
    ) -> list[nn.Sequential]:
        stages, in_channels, rates = [], first_width, iter(drop_rates(drop_path, sum(blocks)))
        for stage, n_blocks in enumerate(blocks):
            width = first_width * 2**stage
            out_channels = width * block.expansion
            layers: list[nn.Module] = []
            for i in range(n_blocks):
                stride = 2 if i == 0 and stage > 0 else 1
                downsample = None
                if stride != 1 or in_channels != out_channels:
                    downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
                layers.append(block(in_channels, width, stride, downsample, next(rates)))
                in_channels = out_channels
            stages.append(nn.Sequential(*layers))
        return stages

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to the last feature map (B, num_features, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.avgpool(self.forward_features(x)).flatten(1)  # type: ignore[no-any-return]
