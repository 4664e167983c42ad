"""The precision that `precision=auto` stands for on this machine."""

from __future__ import annotations

import os
import platform

import torch

AUTO = "auto"
BF16, FP16, FP32 = "bf16-mixed", "16-mixed", "32-true"
"""Lightning's names of the options of the group `precision`."""

ALIASES = {"bf16": BF16, "16": FP16, "32": FP32}
"""Lightning's other names of them."""

NATIVE_BF16 = "FER_LIGHTNING_NATIVE_BF16"
"""Environment variable that overrides the detection: 0 or 1."""


def has_native_bf16(device: str) -> bool:
    """Whether a device ("cpu", "cuda" or "mps") computes bfloat16 in hardware.

    Emulated bfloat16 is correct and slow: training on a CPU takes at least five times as long as in float32.
    """
    if (forced := os.environ.get(NATIVE_BF16)) in ("0", "1"):
        return forced == "1"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    if platform.machine() in ("x86_64", "AMD64"):
        # torch.cpu.get_capabilities() is public from 2.13 on; these are there since 2.6.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    # On macOS CPUs bfloat16 is slower than float32.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return platform.system() == "Linux" and bool(capabilities.get("bf16"))


def choose_precision(device: str) -> str:
    """The fastest precision for training on a device: "bf16-mixed", "16-mixed" or "32-true"."""
    if has_native_bf16(device):
        return BF16
    return FP16 if device == "cuda" else FP32
