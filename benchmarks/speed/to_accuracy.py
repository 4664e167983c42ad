"""Seconds that an experiment takes, and the accuracy that it reaches, over seeds.

    python benchmarks/speed/to_accuracy.py EXPERIMENT --data fer2013.csv --runs FOLDER [--seeds 0 1 2] [--out FILE]

Each run is a process of its own. The clock includes everything but imports and the first read: it is the time of the
process less that of one that imports what a job does and opens the cache of the data. Runs in FOLDER that are finished
by this commit are not repeated, so that the command can be interrupted; others begin again. Their checkpoints are
deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
import pandas as pd
from omegaconf import OmegaConf

from fer_lightning.data.readers.sources import load
from fer_lightning.runs.folder import finished
from fer_lightning.runs.results import git_commit

IMPORTS = """
import gc, sys
gc.disable()  # as a job does
import fer_lightning.app, fer_lightning.training.worker, fer_lightning.training.job
from fer_lightning.data.readers.sources import load
load(sys.argv[1])
"""
"""What is not on the clock."""

SECONDS = "seconds.json"
"""In a run folder: of the clock."""


def timed(command: list[str]) -> float:
    path = os.pathsep.join(filter(None, [str(measure.ROOT), os.environ.get("PYTHONPATH")]))
    started = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


TARGETS: dict[str, tuple[float, dict[str, float]]] = {
    "speed_report": (0.55, {"cpu": 720, "gpu": 15}),
    "speed_65": (0.65, {"cpu": 900}),
    "speed_70": (0.7, {"gpu": 180}),
}
"""By experiment, the accuracy and the seconds by which it should be reached, on two cores or a GPU."""


def run(folder: Path, overrides: list[str], data: Path, without: float) -> dict[str, Any]:
    """Seconds, scores and the curve of a run; `without` are the seconds that are not on the clock."""
    clock = json.loads((folder / SECONDS).read_text()) if (folder / SECONDS).exists() else {}
    of_now = {"overrides": overrides, "by": git_commit()}
    if not of_now.items() <= clock.items() or finished(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
        job = [str(measure.ROOT / "train.py"), *overrides, "trainer.progress_bar=false"]
        seconds = timed([sys.executable, *job, f"data.path={data}", f"hydra.run.dir={folder}"]) - without
        clock = {"seconds": seconds, "imports": without, **of_now}
        (folder / SECONDS).write_text(json.dumps(clock))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    metrics = finished(folder)
    assert metrics is not None
    return {
        **clock,
        "accuracy": metrics["test/accuracy"],
        "f1_macro": metrics["test/f1_macro"],
        "training": metrics["train/seconds"],
        "images_per_second": metrics["train/images_per_second"],
        "precision": OmegaConf.load(folder / "config.yaml").trainer.precision,
        "commit": metrics["commit"],
        "curve": [
            *curve(folder, clock["seconds"] - float(metrics["train/seconds"])),
            [clock["seconds"], metrics["test/accuracy"]],
        ],
    }


def curve(folder: Path, before: float) -> list[list[float]]:
    """Seconds and accuracy on the validation images after each epoch that was validated; `before` of them, at most,
    pass before the first epoch."""
    history = pd.read_csv(folder / "metrics.csv")
    batch = OmegaConf.load(folder / "config.yaml").data.batch_size
    steps = history["step"].diff().fillna(history["step"])
    history["seconds"] = before + (steps * batch / history["train/images_per_second"]).cumsum()
    rows: list[list[float]] = history[["seconds", "val/accuracy"]].dropna().to_numpy().tolist()
    return rows


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments, given = parser.parse_known_args()
    load(str(arguments.data))  # into the cache
    data = arguments.data.resolve()
    results = measure.Results(arguments.out)
    without = statistics.median(timed([sys.executable, "-c", IMPORTS, str(data)]) for _ in range(3))
    target, limits = TARGETS.get(arguments.experiment, (None, dict[str, float]()))
    limit = limits.get("gpu" if results.content["machine"]["gpu"] else "cpu")
    for seed in arguments.seeds:
        overrides = [f"experiment={arguments.experiment}", f"seed={seed}", *given]
        folder = arguments.runs.resolve() / f"{arguments.experiment}-{seed}"
        results.add({"experiment": arguments.experiment, "seed": seed} | run(folder, overrides, data, without))
        accuracies = [row["accuracy"] for row in results.rows]
        mean = {key: statistics.mean(row[key] for row in results.rows) for key in ("accuracy", "f1_macro", "seconds")}
        sd = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        aim = {"target": target, "limit": limit}
        results.note(summary=[{"experiment": arguments.experiment, "seeds": len(accuracies), **mean, "sd": sd, **aim}])


if __name__ == "__main__":
    main()
