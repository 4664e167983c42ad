"""How close training comes to the device's limit.

    python benchmarks/gpu/speed.py --data fer2013.csv --work WORK [--out OUT] [--minutes 9]

By default all parts but `options`, for which there would be no time: --only options.

Measures the share of the device's own rate of bf16 matrix products that ResNet-50 with the small stem trains at, with
what its steps spend their time on in hotspots.txt; then runs scripts of benchmarks/speed with settings for a GPU, each
until it ends or the time is up. Their JSON files, and speed-gpu.json, are those from which benchmarks/speed/page.py
makes docs/performance.md. On a CPU, at toy size: --batches 8 --steps 2 --only limits loop --overrides precision=fp32.
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

LIMITS = 180
"""Seconds that measuring the limits may take."""

MODES = (None, "default", "reduce-overhead")
"""Of `trainer.compile`."""


class Steps:
    """Training steps of a network on one batch, without anything else."""

    def __init__(self, overrides: list[str], compiled: str | None, batch: int) -> None:
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


def limits(call: Call, results: Any, batches: list[int], steps: int) -> None:
    """Share of the matrix rate by batch and mode of compiling; hotspots of those that are not compiled, and of each
    that is faster than all before."""
    overrides = [*RESNET50, *call.overrides]
    cost = operations_per_image(instantiate.network(model_of(overrides), 7), 48)
    results.note(operations_per_image=cost)
    fastest, until = 0.0, call.left - LIMITS
    for mode in MODES:
        for batch in batches:
            if call.left < max(60, until):
                results.add({"compile": mode, "batch": batch, "skipped": "time"})
                continue
            rate = matrix_rate()  # each time, as a device that warms up slows down
            steps_of = Steps(overrides, mode, batch)
            try:
                speed = steps_of.images_per_second(steps)
            except RuntimeError as error:  # of the compiler, or of memory; the other parts go on
                print(f"compiled: {mode}, batch {batch}: {error}", file=sys.stderr)
                continue
            row = {"compile": mode, "batch": batch, "images_per_second": speed, "share": speed * cost / rate}
            results.add(row | {"bf16_matrix_operations_per_second": rate})
            if mode is None or speed > fastest:
                with (call.out / "hotspots.txt").open("a") as file:
                    file.write(f"compiled: {mode}, batch {batch}\n{steps_of.hotspots()}\n")
            fastest = max(fastest, speed)
            del steps_of
            torch.compiler.reset()


def model_of(overrides: list[str]) -> dict[str, Any]:
    import measure

    model: dict[str, Any] = measure.settings_of(["data=synthetic", *overrides])["model"]
    return model


def main() -> None:
    sys.path.insert(0, str(SPEED))
    import measure

    call = Call(__doc__ or "")
    call.parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024])
    call.parser.add_argument("--steps", type=int, default=30)
    call.parser.add_argument("--only", nargs="*", help="names of the parts to run")
    arguments = call.start()
    data, few = ["--data", call.data], ["--steps", str(arguments.steps), "--rounds", "3"]

    def to_accuracy(experiment: str) -> list[str]:
        return ["to_accuracy", experiment, *data, "--runs", str(call.work), *call.overrides]

    parts = {
        "loop": ["loop", *call.overrides, *few, "--cases", "report", "laptop", "small batch", "validation", "test"],
        "growth": ["growth", *data, "--sizes", "100000"],  # from the memory map as well
        "speed_report": to_accuracy("speed_report"),
        "speed_70": [*to_accuracy("speed_70"), "--seeds", "0"],
        "options": ["options", *few, "--network", "laptop", *call.overrides],
    }
    wanted = arguments.only or ["limits", *(name for name in parts if name != "options")]
    if "limits" in wanted:
        results = measure.Results(call.out / "speed-gpu.json", precision="bf16-mixed")
        limits(call, results, arguments.batches, arguments.steps)
    for name, (script, *options) in parts.items():
        if name not in wanted:
            continue
        command = [sys.executable, str(SPEED / f"{script}.py"), *options, "--out", str(call.out / f"{name}-gpu.json")]
        with (call.out / "speed.log").open("a") as log:  # one file, since few come back
            done = call.run(command, stdout=log, stderr=subprocess.STDOUT)
            log.write(f"{name}: {'done' if done else 'failed or out of time'}\n")


if __name__ == "__main__":
    main()
