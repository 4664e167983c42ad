"""Vision Transformer from scratch: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929).

Parameter names and the order of norms are timm's, so that a state dict of the same size, without `head`, loads either
way.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer_lightning.data.table import SIDE
from fer_lightning.models.depth import DropPath, drop_rates

EPS = 1e-6
"""Of the norms, as in the authors' code; PyTorch's default is 1e-5."""


class PatchEmbed(nn.Module):
    """Images (B, C, H, W) to a feature vector of each patch (B, N, width), rows first."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj(x)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention of (B, N, width) (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, n, width = x.shape
        qkv = self.qkv(x).reshape(batch, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(batch, n, width)))


class MLP(nn.Module):
    """Two layers with a GELU between them, applied to each patch."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around an identity shortcut (figure 1, right)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), MLP(width, round(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + cast(Tensor, self.drop_path(self.mlp(self.norm2(x))))


class ViT(nn.Module):
    """A backbone: images (B, in_channels, H, W) to features (B, num_features), those of the class token.

    Images of another size than the position embedding was made for, such as crops, get it interpolated (section 3.2).

    Args:
        in_channels: 1 for grey faces.
        size: height and width that the position embedding is made for, in pixels.
        patch: side of a patch in pixels; it divides the size of every image.
        width: of the features, a multiple of `heads`.
        depth: number of blocks.
        heads: of the attention.
        mlp_ratio: hidden features of an MLP, as a multiple of `width`.
        drop_path: probability of skipping the last block in training, growing linearly from 0 for the first one (Huang
            et al. 2016, arXiv:1603.09382).

    Attributes:
        num_features: `width`.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        in_channels: int = 1,
        size: int = SIDE,
        patch: int = 6,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if min(size, patch, width, depth, heads) < 1 or mlp_ratio <= 0:
            raise ValueError("size, patch, width, depth, heads and mlp_ratio must be positive")
        if size % patch:
            raise ValueError(f"patch={patch} must divide size={size}")
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.patch, self.num_features = patch, width
        self.patch_embed = PatchEmbed(in_channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio, p) for p in drop_rates(drop_path, depth)))
        self.norm = nn.LayerNorm(width, EPS)
        nn.init.normal_(self.cls_token, std=EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def check_side(self, side: int) -> None:
        """Raises ValueError if patches do not divide images of so many pixels along a side."""
        if side % self.patch:
            raise ValueError(f"patch={self.patch} does not divide images of {side} pixels")

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, from 0 at the input, for layer-wise learning rates."""
        parts = parameter.split(".")
        if parts[0] == "blocks":
            return 1 + int(parts[1])
        return len(self.blocks) if parts[0] == "norm" else 0  # with the last block, as in timm

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The position embedding of a grid of patches, (1, 1 + rows · columns, width)."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        self.check_side(height)
        self.check_side(width)
        patches = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1)
        tokens = tokens + self._positions(height // self.patch, width // self.patch)
        return cast(Tensor, self.norm(self.blocks(tokens)))[:, 0]
