"""Time of a training step under each imbalance strategy relative to `none`, which is plain cross-entropy.

    python benchmarks/speed/strategies.py [--steps 40] [overrides …]

One step of each strategy in turn, repeatedly, so that other load on the machine slows all of them alike: the next batch
with its augmentation, forward, loss, backward, optimizer. Prints, for each strategy, the median over rounds of its time
divided by that of `none` in the same round, the quartiles, and the same for the loss alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from loop import WARM_UP
from measure import settings_of

from fer_lightning.app import CONF
from fer_lightning.config import instantiate
from fer_lightning.data.loader import Batch
from fer_lightning.training.imbalance import Strategy
from fer_lightning.training.job import make_classifier, make_data
from fer_lightning.training.optim import parameter_groups
from fer_lightning.training.trainer import quiet


class Measured:
    """One stage of a strategy, ready to take steps.

    Args:
        name: option of the group `imbalance`.
        overrides: of the config.
        stage: index of the stage.
    """

    def __init__(self, name: str, overrides: list[str], stage: int = 0) -> None:
        settings = settings_of([*overrides, f"imbalance={name}"])
        strategy = Strategy.from_config(settings["imbalance"])
        stages = strategy.stages(settings["trainer"]["max_epochs"])
        self.name = name + (f", stage {stage + 1}" if len(stages) > 1 else "")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = settings["trainer"]["precision"] == "bf16-mixed"
        data = make_data(settings, strategy)
        self.classifier = make_classifier(settings, strategy, data, stages[stage]).to(self.device)
        self.classifier.network.arrange(self.device, settings["trainer"]["channels_last"])
        self.classifier.network.backbone.train(not stages[stage].head_only)
        self.classifier.loss.in_force = True
        groups = parameter_groups(self.classifier.network, settings["optimizer"]["weight_decay"])
        self.optimizer = instantiate.call("optimizer", settings["optimizer"], groups)
        self.batches = _forever(data.train_dataloader())

    def step(self) -> tuple[float, float]:
        """Seconds of a complete step, and of the loss alone, forward and backward."""
        started = time.perf_counter()
        batch = Batch(*(None if part is None else part.to(self.device) for part in next(self.batches)))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.classifier(batch.images)
        self._wait()
        at_loss = time.perf_counter()
        leaf = logits.detach().requires_grad_()
        self.classifier.loss(leaf, batch.labels if batch.targets is None else batch.targets).backward()
        self._wait()
        after_loss = time.perf_counter()
        self.optimizer.zero_grad()
        logits.backward(leaf.grad)
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - started, after_loss - at_loss

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _forever(loader: Any) -> Iterator[Batch]:
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    arguments, given = parser.parse_known_args()
    quiet()
    overrides = given or ["data=synthetic", "model=resnet18", "data.batch_size=64", "optimizer=adamw"]
    names = sorted(path.stem for path in (CONF / "imbalance").glob("*.yaml") if path.stem != "none")
    strategies = [Measured(name, overrides) for name in ("none", *names)]
    strategies.append(Measured("two_stage", overrides, stage=1))
    seconds = np.empty((arguments.steps, len(strategies), 2))
    for number in range(-WARM_UP, arguments.steps):
        # The first one alternates: it may profit from what the last one left in the caches.
        for i in np.roll(np.arange(len(strategies)), number):
            taken = strategies[i].step()
            if number >= 0:
                seconds[number, i] = taken
    ratio = seconds[..., 0] / seconds[:, :1, 0]
    print(f"{'':24}  step / none: median (quartiles)   loss, ms   loss / step of none")
    for i, strategy in enumerate(strategies):
        low, median, high = np.quantile(ratio[:, i], [0.25, 0.5, 0.75])
        loss = np.median(seconds[:, i, 1])
        share = loss / np.median(seconds[:, 0, 0])
        print(f"{strategy.name:24}  {median:.3f} ({low:.3f} to {high:.3f})   {1e3 * loss:14.3f}   {share:.4f}")


if __name__ == "__main__":
    main()
