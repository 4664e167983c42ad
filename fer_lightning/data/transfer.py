"""Copies to the training device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """An asynchronous copy of a CPU tensor: it does not wait for a GPU's pending work. This is safe in this direction
    only: CUDA has read unpinned memory when the call returns."""
    return tensor.to(device, non_blocking=device.type == "cuda")
