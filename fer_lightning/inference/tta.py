"""Test-time augmentation: views of a face whose class probabilities are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fer_lightning.errors import UserError
from fer_lightning.inference.description import TTA

CROP = 11 / 12
"""Side of a crop of `ten_crop` as a fraction of the face's: 44 of 48 pixels."""


def check(name: str, where: str = "--tta") -> TTA:
    """The name, or UserError if there is no such augmentation."""
    if name not in get_args(TTA):
        raise UserError(f"{where} {name}: use {', '.join(get_args(TTA))}")
    return name  # type: ignore[return-value]


def views(faces: Tensor, tta: TTA) -> Iterator[Tensor]:
    """The views of faces, uint8 (B, H, W), each of the same shape and type."""
    if tta == "none":
        yield faces
    elif tta == "flip":
        yield from (faces, faces.flip(2))
    else:
        height, width = map(int, faces.shape[1:])  # tensors while torch before 2.10 exports a graph
        h, w = round(height * CROP), round(width * CROP)
        y, x = height - h, width - w
        for top, left in ((0, 0), (0, x), (y, 0), (y, x), (y // 2, x // 2)):
            crop = faces[:, None, top : top + h, left : left + w].float()
            crop = F.interpolate(crop, (height, width), mode="bilinear", align_corners=False)
            crop = crop.round()[:, 0].to(torch.uint8)
            yield from (crop, crop.flip(2))
