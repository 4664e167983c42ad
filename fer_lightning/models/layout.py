"""The memory layout of a network's tensors."""

from __future__ import annotations

import torch
from torch import nn

SAFE_CHANNELS = 16
"""Input channels from which oneDNN's gradient of a strided 1×1 convolution stays inside its buffer, see `layout`."""


def layout(network: nn.Module, device: torch.device, channels_last: bool) -> torch.memory_format:
    """The memory format to train and predict in.

    Channels-last is the faster layout for convolutions in mixed precision. On a CPU it is refused to networks that hold
    a strided 1×1 convolution with fewer input channels than a vector register holds floats, 8 of AVX2 or 16 of AVX-512:
    oneDNN 3.12, which comes with PyTorch 2.13, writes outside its buffer in the backward pass of such a convolution on
    one thread.

    Args:
        network: holds the convolutions.
        device: where it runs.
        channels_last: what the user asks for.
    """
    unsafe = device.type == "cpu" and any(_writes_outside(module) for module in network.modules())
    return torch.channels_last if channels_last and not unsafe else torch.contiguous_format


def _writes_outside(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < SAFE_CHANNELS
    )
