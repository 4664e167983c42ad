"""Seconds that an experiment takes, and the accuracy that it reaches, over seeds.

    python benchmarks/speed/to_accuracy.py EXPERIMENT --data fer2013.csv --runs FOLDER [--seeds 0 1 2] [--out FILE]

Each run is a process of its own. The clock includes everything but imports and the first read: training, validation,
scoring, the report; it is the time of the process less that of one which ends when its first batch is ready, both with
the cache of the data. Finished runs in FOLDER are not repeated, so that the command can be interrupted.
"""

from __future__ import annotations

import json
import os
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

SECONDS = "seconds.json"
"""In a run folder: of the clock."""


def timed(command: list[str]) -> float:
    path = os.pathsep.join([str(measure.ROOT), str(Path(__file__).parent)])
    started = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def run(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Seconds, scores and the curve of a run."""
    if finished(folder) is None or not (folder / SECONDS).exists():
        train = [
            sys.executable,
            str(measure.ROOT / "train.py"),
            *overrides,
            "trainer.progress_bar=false",
            "logger=none",
        ]
        started = timed(
            [*train, f"hydra.run.dir={folder}-start", "+callbacks.end._target_=first_batch.EndAtFirstBatch"]
        )
        total = timed([*train, f"hydra.run.dir={folder}"])
        (folder / SECONDS).write_text(json.dumps({"seconds": total - started, "start": started}))
    metrics, clock = finished(folder), json.loads((folder / SECONDS).read_text())
    assert metrics is not None
    return {
        **clock,
        "accuracy": metrics["test/accuracy"],
        "f1_macro": metrics["test/f1_macro"],
        "training": metrics["train/seconds"],
        "images_per_second": metrics["train/images_per_second"],
        "curve": curve(folder),
    }


def curve(folder: Path) -> list[list[float]]:
    """Seconds of training and accuracy on the validation images after each epoch that was validated."""
    history = pd.read_csv(folder / "metrics.csv")
    batch = OmegaConf.load(folder / "config.yaml").data.batch_size
    steps = history["step"].diff().fillna(history["step"])
    history["seconds"] = (steps * batch / history["train/images_per_second"]).cumsum()
    rows: list[list[float]] = history[["seconds", "val/accuracy"]].dropna().to_numpy().tolist()
    return rows


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments, overrides = parser.parse_known_args()
    load(str(arguments.data))  # into the cache
    rows = []
    for seed in arguments.seeds:
        own = [f"experiment={arguments.experiment}", f"data.path={arguments.data.resolve()}", f"seed={seed}"]
        folder = arguments.runs.resolve() / f"{arguments.experiment}-{seed}"
        rows.append({"experiment": arguments.experiment, "seed": seed} | run(folder, [*own, *overrides]))
        print(f"seed {seed}: {rows[-1]['accuracy']:.4f} in {rows[-1]['seconds']:.0f} s", flush=True)
    accuracies = [row["accuracy"] for row in rows]
    summary = {
        "experiment": arguments.experiment,
        "accuracy": statistics.mean(accuracies),
        "sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "seconds": statistics.mean(row["seconds"] for row in rows),
    }
    measure.save(arguments.out, rows, summary=summary)


if __name__ == "__main__":
    main()
