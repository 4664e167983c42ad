"""Copies to the training device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor of the CPU, which does not wait for what a GPU still has to do. This is safe in this direction
    only: CUDA has read unpinned memory when the call returns."""
    return tensor.to(device, non_blocking=device.type == "cuda")
