"""Memory layouts: no network trains in one in which oneDNN writes outside its buffers."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fer_lightning.app import CONF
from fer_lightning.models.layout import layout
from fer_lightning.models.resnet import ResNet

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

TRAIN = """
import sys

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fer_lightning.app import CONF, register
from fer_lightning.config import instantiate

register()
torch.set_num_threads(int(sys.argv[1]))
same = ("timm", "resnet101", "resnet152")  # the last two have the layers of resnet50
configs = [(path.stem, {}) for path in sorted((CONF / "model").glob("*.yaml")) if path.stem not in same]
for stem in ("report", "small"):
    configs += [("resnet18", {"width": width, "stem": stem}) for width in (4, 2, 6, 1, 7, 8, 15, 16)]
with initialize_config_dir(str(CONF), version_base="1.3"):
    nodes = {name: OmegaConf.to_container(compose("config", [f"model={name}"]).model) for name in dict(configs)}
    for name, changes in configs:
        network = instantiate.network(nodes[name] | changes, 7)
        network.arrange(torch.device("cpu"), channels_last=True)
        network(torch.rand(32 if changes else 2, 1, 48, 48)).square().mean().backward()
        print(name, changes, flush=True)
"""


@pytest.mark.parametrize("width", [1, 4, 7, 8, 15])
def test_channels_last_is_refused_where_onednn_corrupts_the_heap(width: int) -> None:
    network = ResNet(18, width=width)
    assert layout(network, CPU, channels_last=True) is torch.contiguous_format
    assert layout(network, torch.device("cuda"), channels_last=True) is torch.channels_last


def test_channels_last_is_used_where_it_is_safe() -> None:
    assert layout(ResNet(18, width=16), CPU, channels_last=True) is torch.channels_last
    assert layout(ResNet(18, width=16), CPU, channels_last=False) is torch.contiguous_format


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_shipped_network_corrupts_the_heap(threads: int) -> None:
    """Under glibc's checking allocator, which ends a process that frees a damaged block."""
    checker = "libc_malloc_debug.so.0"
    if sys.platform != "linux" or not ctypes.util.find_library("c_malloc_debug"):
        pytest.skip(f"{checker} is not installed")
    env = (
        os.environ
        | {"LD_PRELOAD": checker, "MALLOC_CHECK_": "3"}
        | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    )
    command = [sys.executable, "-c", TRAIN, str(threads)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 16 - 3 + len(list((CONF / "model").glob("*.yaml")))
