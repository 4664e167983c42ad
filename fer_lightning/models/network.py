"""The network that every strategy, export and prediction uses: preprocessing → backbone → dropout → head."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fer_lightning.models.heads import CosineHead
from fer_lightning.models.layout import layout
from fer_lightning.models.preprocessing import Preprocessing


class FaceNetwork(nn.Module):
    """Grey faces (B, 1, H, W), float in [0, 1], to logits (B, num_classes).

    Args:
        backbone: maps (B, C, H, W) to features (B, num_features), and has the attribute `num_features`.
        num_classes: number of logits.
        preprocessing: of the backbone's input.
        dropout: probability of zeroing a feature before the head.
        cosine_scale: use a cosine head of this scale instead of a linear one.

    Raises:
        ValueError: the backbone does not state its number of features.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        preprocessing: Preprocessing | None = None,
        dropout: float = 0.0,
        cosine_scale: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(getattr(backbone, "num_features", None), int):
            raise ValueError(f"{type(backbone).__name__} has no attribute num_features, which the head needs")
        self.preprocessing = preprocessing or Preprocessing()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        features = cast(int, backbone.num_features)
        if cosine_scale is None:
            self.head = nn.Linear(features, num_classes)
        else:
            self.head = CosineHead(features, num_classes, cosine_scale)
        self._memory_format = torch.contiguous_format

    def arrange(self, device: torch.device, channels_last: bool) -> None:
        """Choose the memory layout for training or predicting on a device, see `fer_lightning.models.layout`."""
        self._memory_format = layout(self, device, channels_last)
        cast(Any, self).to(memory_format=self._memory_format)

    def check_side(self, side: int) -> None:
        """Raises ValueError if the backbone cannot take images of so many pixels along each side, or of the size that
        they are scaled to."""
        check = getattr(self.backbone, "check_side", None)
        if check is not None:
            check(self.preprocessing.side_of(side))

    def forward(self, images: Tensor) -> Tensor:
        inputs = self.preprocessing(images).contiguous(memory_format=self._memory_format)
        features = self.dropout(self.backbone(inputs))
        if torch.is_autocast_enabled(features.device.type):
            # Logits in bf16 would have steps of 1/64 to 1/8, which make ties and move probabilities.
            with torch.autocast(features.device.type, enabled=False):
                return cast(Tensor, self.head(features.float()))
        return cast(Tensor, self.head(features))
