"""Multiply-adds, parameters and training speed of networks, one thread, taking turns.

    python benchmarks/speed/candidates.py [--rounds 5] [--out FILE]

A step is forward and backward of one batch, as in training: no data and no augmentation; a step of Muon is timed by
itself. Speeds are medians over the rounds, in each of which every candidate takes one step. Squeeze-excitation and
fewer channels early are measured here only: no network of this project has them. EfficientNet-Lite0 is left out where
timm is not installed.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from typing import Any, NamedTuple

import measure
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fer_lightning.config import instantiate
from fer_lightning.data.table import SIDE
from fer_lightning.models.network import FaceNetwork
from fer_lightning.models.vgg import Stage
from fer_lightning.training.optim import parameter_groups

VGG = "model=vgg model.width={}"
RESNET = "model=resnet{} model.width={} model.stem=small"

LITE = "model=timm model.name=tf_efficientnet_lite0 model.preprocessing.size={}"


class Candidate(NamedTuple):
    """A network, its overrides, and the side of its input in pixels, to which a network of timm scales whole faces."""

    network: str
    overrides: str
    pixels: int
    batch: int = 128

    @property
    def side(self) -> int:
        """Of the images that it is given."""
        return SIDE if "model=timm" in self.overrides else self.pixels


CANDIDATES = [
    Candidate("ResNet-18, a quarter of the width", RESNET.format(18, 16), 40),
    Candidate("ResNet-18, three eighths", RESNET.format(18, 24), 40),
    Candidate("ResNet-18, half", RESNET.format(18, 32), 40),
    Candidate("ResNet-50 (bottlenecks), a quarter", RESNET.format(50, 16), 40),
    Candidate("ResNet-50, the report's stem and width", "model=resnet50", 48),
    Candidate("VGG, width 24", VGG.format(24), 40),
    Candidate("VGG, width 32", VGG.format(32), 32),
    Candidate("VGG, width 32", VGG.format(32), 40),
    Candidate("VGG, width 32", VGG.format(32), 44),
    Candidate("VGG, width 32", VGG.format(32), 48),
    Candidate("VGG, width 48", VGG.format(48), 40),
    Candidate("VGG, width 48", VGG.format(48), 40, batch=32),
    Candidate("VGG, width 32, fewer convolutions", VGG.format(32) + " model.convs=[1,2,2,1]", 40),
    Candidate("VGG, width 32, squeeze-excitation", VGG.format(32), 40),
    Candidate("VGG, width 32, but 16 in the first stage", VGG.format(32), 40),
    Candidate("VGG, width 32, more convolutions", VGG.format(32) + " model.convs=[2,3,3,2]", 40),
    Candidate("ViT, patches of 6 pixels", "model=vit model.patch=6", 48),
    Candidate("EfficientNet-Lite0", LITE.format(96), 96, batch=16),
    Candidate("EfficientNet-Lite0", LITE.format(112), 112, batch=16),
    Candidate("EfficientNet-Lite0", LITE.format(112), 112, batch=64),
]


class SqueezeExcitation(nn.Module):
    """Scales channels by what their means say (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, width: int, reduction: int = 8) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width // reduction), nn.Linear(width // reduction, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale: torch.Tensor = self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()
        return x * scale[:, :, None, None]


def made(name: str, overrides: str) -> FaceNetwork:
    network = instantiate.network(measure.settings_of(overrides.split())["model"], 7)
    stages: Any = getattr(network.backbone, "stages", [])
    if "squeeze" in name:
        for width, stage in zip((64, 128, 256), list(stages)[1:], strict=True):
            stage.branch.append(SqueezeExcitation(width))
    if "first stage" in name:
        stages[0], stages[1] = Stage(1, 16, 1), Stage(16, 64, 3)
    return network


def multiply_adds(network: FaceNetwork, side: int) -> int:
    """Of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.rand(1, 1, side, side))
    return int(counter.get_total_flops() // 2)


def step(
    network: FaceNetwork, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> tuple[float, float]:
    """Seconds of forward and backward, and of the optimizer."""
    started = time.perf_counter()
    F.cross_entropy(network(images), labels).backward()
    trained = time.perf_counter()
    optimizer.step()
    ended = time.perf_counter()
    optimizer.zero_grad()
    return trained - started, ended - trained


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    candidates = [c for c in CANDIDATES if "model=timm" not in c.overrides or importlib.util.find_spec("timm")]
    networks: list[FaceNetwork] = []
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        network = made(candidate.network, candidate.overrides)
        parameters = sum(p.numel() for p in network.parameters())
        operations = multiply_adds(network, candidate.side)
        rows.append(candidate._asdict() | {"parameters": parameters, "multiply_adds": operations})
        network.arrange(torch.device("cpu"), channels_last=True)
        networks.append(network.train())
    muon = measure.settings_of(["optimizer=muon", "optimizer.lr=1e-4"])["optimizer"]
    groups = [parameter_groups(network, 0.01, mark_head=True) for network in networks]
    optimizers = [instantiate.call("optimizer", muon, group) for group in groups]
    results = measure.Results(arguments.out, precision="32-true")
    seconds: list[list[tuple[float, float]]] = [[] for _ in networks]
    for number in range(arguments.rounds + 1):
        for i, (network, candidate) in enumerate(zip(networks, candidates, strict=True)):
            images = torch.rand(candidate.batch, 1, candidate.side, candidate.side)
            took = step(network, optimizers[i], images, torch.randint(0, 7, (candidate.batch,)))
            if number:  # memory is allocated in the first round
                seconds[i].append(took)
    for row, took in zip(rows, seconds, strict=True):
        row["images_per_second"] = row["batch"] / statistics.median(trained for trained, _ in took)
        row["optimizer_ms"] = 1e3 * statistics.median(of_optimizer for _, of_optimizer in took)
        row["gflops"] = 6e-9 * row["multiply_adds"] * row["images_per_second"]
        results.add(row)


if __name__ == "__main__":
    main()
