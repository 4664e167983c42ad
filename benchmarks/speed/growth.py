"""Time per image and memory of every part of a job, from a thousand images to a million.

    python benchmarks/speed/growth.py --data fer2013.csv [--sizes 1000 10000 100000 1000000] [--out FILE]
    python benchmarks/speed/growth.py --data fer2013.csv --sizes 36000 200000 --near [--out FILE]

A set is FER-2013 repeated: each copy of an image is shifted by up to three pixels and has noise, so that no two are
identical. Nine tenths of it train, the rest is tested. Each size has a process of its own. Measured are the parts as a
job and the commands call them; an epoch is one of a very small network in batches of 256, with its images on the device
and read from the memory map. --near measures the search for near-duplicates alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fer_lightning.data.readers.sources import load
from fer_lightning.data.table import FER_CLASSES, FaceTable
from fer_lightning.training.trainer import quiet

TINY = ["model=vgg", "model.width=4", "augment=light", "precision=fp32", "data.batch_size=256", "protocol=kaggle"]
"""Overrides of the epochs."""


def repeated(source: FaceTable, n: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Label and image of n faces."""
    rng = np.random.default_rng(0)
    for i in range(n):
        row = i % len(source)
        image = source.images[row]
        if i >= len(source):
            y, x = rng.integers(-3, 4, 2)
            image = np.pad(image, 3, mode="edge")[3 + y : 51 + y, 3 + x : 51 + x]
            image = np.clip(image + rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
        yield int(source.labels[row]), image


def write(source: FaceTable, n: int, to: Path) -> None:
    """A CSV of n faces."""
    numbers = [str(value) for value in range(256)]
    usages = ["Training"] * 18 + ["PublicTest", "PrivateTest"]
    with to.open("w") as file:
        file.write("emotion,pixels,Usage\n")
        for i, (label, image) in enumerate(repeated(source, n)):
            pixels = " ".join([numbers[value] for value in image.tobytes()])
            file.write(f"{label},{pixels},{usages[i % 20]}\n")


class Clock:
    """Seconds by name, and the peak memory so far."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {name}: {self.seconds[name]:.2f} s, {self.memory[name]:,.0f} MiB so far", file=sys.stderr, flush=True)


def measured(path: Path, folder: Path) -> Clock:
    """Every part of a job on the CSV `path`."""
    from loop import Job

    from fer_lightning.audit.write import audit
    from fer_lightning.metrics.calibration import entries
    from fer_lightning.report.write import write_report
    from fer_lightning.runs import results
    from fer_lightning.training.imbalance import Strategy
    from fer_lightning.training.job import make_data

    clock, cache = Clock(), folder / "cache"
    with clock.measuring("first read"):
        load(str(path), cache_dir=cache)
    time.sleep(1.5)  # a file that has just changed is not trusted to be the one in the cache
    load(str(path), cache_dir=cache)
    with clock.measuring("cached read"):
        load(str(path), cache_dir=cache)
    where = [f"data.path={path}", f"data.cache_dir={cache}"]
    settings = measure.settings_of([*where, "imbalance=balanced"])
    with clock.measuring("splits, balanced copies"):
        make_data(settings, Strategy.from_config(settings["imbalance"]))
    job = Job(measure.settings_of([*where, *TINY]))
    faces, parts = job.data.faces, job.data.parts
    job.seconds_of_epochs(1)  # memory is allocated, and libraries are loaded
    for name, gib in (("epoch, on the device", 1e3), ("epoch, from the memory map", 0.0)):
        job.data.resident_gib = gib
        with clock.measuring(name):
            job.seconds_of_epochs(1)
    rows = np.arange(len(faces))
    logits = torch.randn(len(rows), 7, generator=torch.Generator().manual_seed(0))
    logits[rows, torch.tensor(faces.labels)] += 1.5
    with clock.measuring("scores"):
        scored = results.Scored.from_logits(faces, rows, logits, parts.clean)
        calibration = results.fit_calibration(logits, faces.labels)
        scores = results.test_scores(scored, FER_CLASSES, calibration) | entries(calibration)
    counts = dict(zip(FER_CLASSES, faces.counts().tolist(), strict=True))
    with clock.measuring("report page, predictions.csv"):
        write_report(
            folder, predictions=scored.predictions, classes=FER_CLASSES, counts_before=counts, counts_after=counts,
            metrics=scores, history=None, images=faces.images, config_yaml="", about={"name": "growth"},
        )  # fmt: skip
    with clock.measuring("audit, without near-duplicates"):
        audit(path, near=False, out=folder / "audit")
    return clock


def near(source: FaceTable, n: int) -> Clock:
    from fer_lightning.data.quality.duplicates import near_pairs

    images = np.stack([image for _, image in repeated(source, n)])
    clock = Clock()
    with clock.measuring("near-duplicates"):
        pairs = near_pairs(images)
    print(f"  {len(pairs.first):,} pairs", file=sys.stderr)
    return clock


def child(arguments: argparse.Namespace) -> None:
    quiet()
    source, n = load(str(arguments.data)), arguments.child
    if arguments.near:
        clock = near(source, n)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "faces.csv"
            write(source, n, path)
            clock = measured(path, Path(folder))
    arguments.result.write_text(json.dumps({"seconds": clock.seconds, "memory": clock.memory}))


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--near", action="store_true")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for n in arguments.sizes:
            print(f"{n:,} images", flush=True)
            result = Path(folder) / f"{n}.json"
            command = [
                sys.executable, __file__, "--data", str(arguments.data), "--child", str(n), "--result", str(result),
                *(["--near"] if arguments.near else []),
            ]  # fmt: skip
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = json.loads(result.read_text())
            for part, seconds in found["seconds"].items():
                row = {"images": n, "part": part, "seconds": seconds}
                rows.append(row | {"memory_mib": found["memory"][part]})
    table = pd.DataFrame(rows).pivot(index="part", columns="images", values="seconds")
    print((1e3 * table / table.columns.to_numpy()).to_string(float_format="{:.4f}".format), "ms per image")
    measure.save(arguments.out, rows)


if __name__ == "__main__":
    main()
