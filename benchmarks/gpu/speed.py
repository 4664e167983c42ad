"""Call 4: how close training comes to the device's limit.

    python benchmarks/gpu/speed.py --data fer2013.csv --work WORK [--out OUT] [--minutes 9]

Runs the scripts of benchmarks/speed with settings for a GPU, each until it ends or the time is up, and writes their
JSON files, from which benchmarks/speed/page.py makes docs/performance.md; speed.json has the share of the device's own
rate of bf16 matrix products that ResNet-50 with the small stem trains at, and hotspots-*.txt what its steps spend their
time on. On a CPU, at toy size: --batches 8 --steps 2 --only limits loop --overrides precision=fp32.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from common import ROOT, Call, matrix_rate, operations_per_image
from torch.profiler import ProfilerActivity, profile

from fer_lightning.config import instantiate

SPEED = ROOT / "benchmarks" / "speed"

RESNET50 = ("experiment=laptop", "model=resnet50", "model.stem=small", "model.width=64", "augment.crop=null")

MODES = (None, "default", "reduce-overhead")
"""Of `trainer.compile`."""


class Steps:
    """Training steps of a network on one batch, without anything else."""

    def __init__(self, overrides: list[str], compiled: str | None, batch: int) -> None:
        sys.path.insert(0, str(SPEED))
        import measure

        settings = measure.settings_of(["data=synthetic", *overrides])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = instantiate.network(settings["model"], 7).to(self.device)
        self.network.arrange(self.device, channels_last=True)
        if compiled:
            self.network.compile(mode=compiled, dynamic=False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.images = torch.rand(batch, 1, 48, 48, device=self.device)
        self.labels = torch.randint(0, 7, (batch,), device=self.device)

    def step(self) -> None:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(self.network(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def images_per_second(self, steps: int = 20) -> float:
        """The median of three measurements, after some steps that are not counted."""
        speeds = []
        for _ in range(4):
            self.wait()
            started = time.perf_counter()
            for _ in range(steps):
                self.step()
            self.wait()
            speeds.append(steps * len(self.labels) / (time.perf_counter() - started))
        return statistics.median(speeds[1:])

    def hotspots(self) -> str:
        """A table of the operations of five steps, by the time of the device."""
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiled:
            for _ in range(5):
                self.step()
            self.wait()
        by = f"self_{self.device.type}_time_total"
        return str(profiled.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=60))


def limits(call: Call, batches: list[int], steps: int) -> None:
    """Share of the matrix rate by batch and mode of compiling; hotspots of the fastest."""
    rate, rows = matrix_rate(), list[dict[str, Any]]()
    overrides = [*RESNET50, *call.overrides]
    cost = 0
    for mode in MODES:
        for batch in batches:
            if call.left < 60:
                break
            steps_of = Steps(overrides, mode, batch)
            cost = cost or operations_per_image(instantiate.network(model_of(overrides), 7), 48)
            speed = steps_of.images_per_second(steps)
            rows.append({"compile": mode, "batch": batch, "images_per_second": speed, "share": speed * cost / rate})
            if mode is None or speed == max(row["images_per_second"] for row in rows):
                name = f"hotspots-{mode or 'eager'}-{batch}.txt"
                (call.out / name).write_text(steps_of.hotspots())
            call.note(bf16_matrix_operations_per_second=rate, operations_per_image=cost, limits=rows)
            del steps_of
            torch.compiler.reset()


def model_of(overrides: list[str]) -> dict[str, Any]:
    import measure

    model: dict[str, Any] = measure.settings_of(["data=synthetic", *overrides])["model"]
    return model


def main() -> None:
    call = Call(__doc__ or "")
    call.parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024])
    call.parser.add_argument("--steps", type=int, default=20)
    call.parser.add_argument("--only", nargs="*", help="names of the parts to run")
    arguments = call.start()
    python, data, few = sys.executable, ["--data", call.data], ["--steps", str(arguments.steps)]

    def to_accuracy(experiment: str) -> list[str]:
        runs = ["--runs", str(call.work / experiment)]
        return [str(SPEED / "to_accuracy.py"), experiment, *data, *runs, *call.overrides]

    parts = {
        "loop": [str(SPEED / "loop.py"), *few, *call.overrides],
        "options": [str(SPEED / "options.py"), *few, *call.overrides],
        "growth": [str(SPEED / "growth.py"), *data, "--sizes", "1000", "10000", "100000"],
        **{name: to_accuracy(name) for name in ("speed_report", "speed_70")},
    }
    wanted = arguments.only or ["limits", *parts]
    if "limits" in wanted:
        limits(call, arguments.batches, arguments.steps)
    for name, command in parts.items():
        if name not in wanted or (call.out / f"{name}-gpu.json").exists():
            continue
        with (call.out / f"{name}.txt").open("w") as log:
            out = ["--out", str(call.out / f"{name}-gpu.json")]
            done = call.run([python, *command, *out], stdout=log, stderr=subprocess.STDOUT)
        call.note(**{name: "done" if done else "failed or out of time"})


if __name__ == "__main__":
    main()
