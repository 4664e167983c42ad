"""Time per image and memory of every part of a job, from a thousand images to a million.

    python benchmarks/speed/growth.py --data fer2013.csv [--sizes 1000 10000 100000 1000000] [--out FILE]
    python benchmarks/speed/growth.py --data fer2013.csv --near [--sizes 36000 200000] [--out FILE]

A set is FER-2013 repeated: each copy of an image is shifted by up to three pixels and has noise, so that no two are
identical. Nine tenths of it train, the rest is tested. Each size has a process of its own, which first goes through all
parts with a few images, so that libraries are loaded. Parts are called as a job and the commands call them, those of
small sets several times; an epoch is one of a very small network in batches of 100.
Then epochs with images on the device and with all of them read from the memory map take turns, of at most 100,000
images, and a whole one of each is run in a process of its own, whose memory is measured.

--near measures the search for near-duplicates alone, up to 40,000 images also by comparing all pairs, and what share of
the pairs so found it finds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from loop import Job
from numpy.typing import NDArray

from fer_lightning.data.readers.sources import load
from fer_lightning.data.table import FER_CLASSES, FaceTable
from fer_lightning.training.trainer import quiet

TINY = ["model=vgg", "model.width=4", "augment=light", "precision=fp32", "data.batch_size=100", "protocol=kaggle"]
"""Overrides of the epochs."""

BUDGETS = {"on the device": 1e3, "from the memory map": 0.0}
"""GiB of images that may be on the device."""

ROUNDS = {20_000: 5, 200_000: 3}
"""Up to so many images, so many measurements of a part, of larger sets one."""

FEW = 400
"""Images of the pass before."""

IN_TURNS = 100_000
"""At most so many images are trained on where the device and the memory map take turns, drawn from all of them."""

ALL_PAIRS = 40_000
"""Up to so many images, all pairs are compared as well."""


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


def memory_mib(key: str) -> float:
    """MiB of this process, as `key` of its status says."""
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) / 1024


class Clock:
    """Seconds and peak memory by name, from Linux, which counts the pages of memory maps as well.

    Args:
        rounds: measurements of each part, whose median counts.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds, self.rows = rounds, list[dict[str, Any]]()

    def measure(self, part: str, run: Callable[[], Any], rounds: int = 0) -> Any:
        """The result of `run`, which is timed."""
        seconds = []
        gc.collect()  # trainers are parts of cycles, and keep their images
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        for _ in range(rounds or self.rounds):
            started = time.perf_counter()
            result = run()
            seconds.append(time.perf_counter() - started)
        memory = memory_mib("VmHWM")
        self.rows.append({"part": part, "seconds": statistics.median(seconds), "memory_mib": memory})
        print(f"  {part}: {self.rows[-1]['seconds']:.2f} s, {memory:,.0f} MiB", file=sys.stderr, flush=True)
        return result


def job_of(path: Path, cache: Path) -> Job:
    return Job(measure.settings_of([f"data.path={path}", f"data.cache_dir={cache}", *TINY]))


def epochs(path: Path, cache: Path, clock: Clock) -> dict[str, Any]:
    """Time a whole epoch; the speeds of shorter ones with images on the device and from the memory map."""
    job = job_of(path, cache)
    trained = len(job.data.parts.train)
    share = min(1.0, IN_TURNS / trained)

    def epoch(gib: float, share: float) -> float:
        job.data.resident_gib = gib
        return job.seconds_of_epochs(1, limit_train_batches=share)

    epoch(0.0, share)  # memory is allocated
    clock.measure("epoch", lambda: epoch(BUDGETS["on the device"], 1.0))
    seconds = measure.take_turns({name: partial(epoch, gib, share) for name, gib in BUDGETS.items()}, 3, unit="s")
    trained = round(share * trained)
    return {
        "trained": trained,
        "resident": trained / statistics.median(seconds["on the device"]),
        "mapped": trained / statistics.median(seconds["from the memory map"]),
        **measure.ratio(seconds["on the device"], seconds["from the memory map"]),
    }


def measured(path: Path, folder: Path, n: int) -> dict[str, Any]:
    """Every part of a job on the CSV `path`, and its training from the device and from the memory map."""
    from fer_lightning.audit.write import audit
    from fer_lightning.metrics.calibration import entries
    from fer_lightning.report.write import write_report
    from fer_lightning.runs import results
    from fer_lightning.training.imbalance import Strategy
    from fer_lightning.training.job import make_data

    clock, caches = Clock(next((rounds for size, rounds in ROUNDS.items() if n <= size), 1)), iter(range(100))
    time.sleep(1.5)  # a file that has just changed is not trusted to be the one in the cache
    clock.measure("first read", lambda: load(str(path), cache_dir=folder / f"cache-{next(caches)}"))
    cache = folder / "cache-0"
    os.environ["FER_LIGHTNING_CACHE"] = str(cache)  # of `audit`
    clock.measure("cached read", lambda: load(str(path), cache_dir=cache), rounds=3)
    settings = measure.settings_of([f"data.path={path}", f"data.cache_dir={cache}", "imbalance=balanced"])
    strategy = Strategy.from_config(settings["imbalance"])
    clock.measure("splits, balanced copies", lambda: make_data(settings, strategy))
    streamed = epochs(path, cache, clock)
    data = job_of(path, cache).data
    faces, parts = data.faces, data.parts
    rows = np.arange(len(faces))
    logits = torch.randn(len(rows), 7, generator=torch.Generator().manual_seed(0))
    logits[rows, torch.tensor(faces.labels)] += 1.5

    def scored() -> tuple[results.Scored, dict[str, float]]:
        of_all = results.Scored.from_logits(faces, rows, logits, parts.clean)
        calibration = results.fit_calibration(logits, faces.labels)
        return of_all, results.test_scores(of_all, FER_CLASSES, calibration) | entries(calibration)

    of_all, scores = clock.measure("scores", scored)
    counts = dict(zip(FER_CLASSES, faces.counts().tolist(), strict=True))
    clock.measure(
        "report page, predictions.csv",
        lambda: write_report(
            folder, predictions=of_all.predictions, classes=FER_CLASSES, counts_before=counts, counts_after=counts,
            metrics=scores, history=None, images=faces.images, config_yaml="", about={"name": "growth"},
        ),
    )  # fmt: skip
    clock.measure("audit, without near-duplicates", lambda: audit(path, near=False, out=folder / "audit"))
    return {"rows": clock.rows, "streamed": streamed}


def memory_of_an_epoch(path: Path, cache: Path, gib: float) -> float:
    """MiB of this process's own after an epoch, without the pages of the memory map, which the system may drop."""
    job = job_of(path, cache)
    job.data.resident_gib = gib
    job.seconds_of_epochs(1)
    return memory_mib("RssAnon")


def near(source: FaceTable, n: int) -> dict[str, Any]:
    from fer_lightning.data.quality import candidates
    from fer_lightning.data.quality.duplicates import near_pairs

    images = np.unique(np.stack([image for _, image in repeated(source, n)]), axis=0)
    clock = Clock(1)
    found = clock.measure("near-duplicates", lambda: near_pairs(images))
    clock.rows[0] |= {"pairs": len(found.first), "found_of_all": None}
    if n <= ALL_PAIRS:
        candidates._EXHAUSTIVE = n
        every = clock.measure("near-duplicates, all pairs compared", lambda: near_pairs(images))
        keys = [set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) for pairs in (found, every)]
        clock.rows[0]["found_of_all"] = len(keys[0] & keys[1]) / len(keys[1])
        clock.rows[1] |= {"pairs": len(every.first), "found_of_all": 1.0}
    return {"rows": clock.rows}


def child(arguments: argparse.Namespace) -> None:
    """Measure one size, in this process and, for memory, in some of its own."""
    quiet()
    n = arguments.child
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.near:
            found = near(load(str(arguments.data), cache_dir=folder / "source"), n)
        else:
            source = load(str(arguments.data), cache_dir=folder / "source")
            for images, name in ((FEW, "before"), (n, "measured")):
                path = folder / name / "faces.csv"
                path.parent.mkdir()
                write(source, images, path)
                found = measured(path, path.parent, images)
            for name, gib in BUDGETS.items():
                command = [sys.executable, __file__, "--data", str(path), "--epoch", str(gib)]
                cache = ["--cache", str(path.parent / "cache-0")]
                done = subprocess.run([*command, *cache], check=True, capture_output=True, text=True)
                found["streamed"][f"memory, {name}"] = float(done.stdout.split()[-1])
    arguments.result.write_text(json.dumps(found))


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--near", action="store_true")
    for name, kind in (("child", int), ("result", Path), ("epoch", float), ("cache", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    if arguments.epoch is not None:
        quiet()
        print(memory_of_an_epoch(arguments.data, arguments.cache, arguments.epoch))
        return
    own = ["--near"] if arguments.near else []
    results = measure.Results(arguments.out, precision="32-true")
    streamed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for n in arguments.sizes or ([36_000, 200_000] if arguments.near else [1000, 10_000, 100_000, 1_000_000]):
            print(f"{n:,} images", flush=True)
            result = Path(folder) / f"{n}.json"
            command = [sys.executable, __file__, "--data", str(arguments.data), "--child", str(n), *own]
            subprocess.run([*command, "--result", str(result)], check=True, stdout=subprocess.DEVNULL)
            found = json.loads(result.read_text())
            for row in found["rows"]:
                results.add({"images": n, **row})
            if "streamed" in found:
                streamed.append({"images": n, **found["streamed"]})
                results.note(streamed=streamed)


if __name__ == "__main__":
    main()
