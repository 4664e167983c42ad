"""The share of a sweep's time that is not training, and what the joblib launcher gains on several cores.

    python benchmarks/speed/sweeps.py [--jobs 40] [--launchers basic,joblib] [--out FILE] [overrides …]

A sweep of short jobs on drawn faces, of one thread each, over seeds: with the basic launcher one after another, with
joblib one on each core. Training is `train/seconds` in the metrics of each job: the epochs with their validation.
Everything else is the start of Python, imports, data, scoring and the report.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

JOB = [
    "experiment=quickstart",
    "data.synthetic.n_train=1300",
    "data.synthetic.n_test=400",
    "logger=csv",
    "trainer.max_epochs=6",
    "trainer.progress_bar=false",
]

LAUNCHERS = {"basic": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs={cores}"]}


def sweep(launcher: str, jobs: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Seconds of a sweep, and of training in its jobs."""
    options = [option.format(cores=os.cpu_count()) for option in LAUNCHERS[launcher]]
    seeds = ",".join(map(str, range(jobs)))
    command = [
        sys.executable, str(measure.ROOT / "train.py"), "-m", *JOB, f"seed={seeds}", f"hydra.sweep.dir={folder}",
        *options, *overrides,
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = time.perf_counter() - started
    training = [json.loads(path.read_text())["train/seconds"] for path in folder.glob("*/metrics.json")]
    assert len(training) == jobs
    return {
        "launcher": launcher,
        "jobs": jobs,
        "seconds": seconds,
        "training": sum(training),
        "training_per_job": statistics.median(training),
        "share_not_training": 1 - sum(training) / seconds if launcher == "basic" else None,
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    arguments, overrides = parser.parse_known_args()
    launchers = arguments.launchers.split(",")
    with tempfile.TemporaryDirectory() as folder:
        sweep("basic", 1, overrides, Path(folder) / "first")  # draws the faces
        rows = [sweep(launcher, arguments.jobs, overrides, Path(folder) / launcher) for launcher in launchers]
    if len(rows) > 1:
        rows[-1]["faster_than_basic"] = rows[0]["seconds"] / rows[-1]["seconds"]
    measure.save(arguments.out, rows)


if __name__ == "__main__":
    main()
