"""The share of a sweep's time that is not training, and what the joblib launcher gains on several cores.

    python benchmarks/speed/sweeps.py [--jobs 40] [--rounds 1] [--launchers basic,joblib] [--out FILE] [overrides …]

A sweep of short jobs on drawn faces, of one thread each, over seeds: with the basic launcher one after another, with
joblib one on each core. Training is `train/seconds` in the metrics of each job: epochs, their validation and their
checkpoints. Everything else is the start of Python, imports, data, scoring and the report. The launchers take turns.
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


def sweep(launcher: str, jobs: int, overrides: list[str], folder: Path) -> dict[str, float]:
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
        "jobs": jobs,
        "seconds": seconds,
        "training_per_job": statistics.median(training),
        "share_not_training": 1 - sum(training) / seconds,
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    arguments, overrides = parser.parse_known_args()
    launchers = arguments.launchers.split(",")
    precision = measure.settings_of([*JOB, *overrides])["trainer"]["precision"]
    results = measure.Results(arguments.out, precision=precision, threads_of_a_job=1)
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            {name: sweep(name, arguments.jobs, overrides, Path(folder) / f"{name}-{number}") for name in launchers}
            for number in range(arguments.rounds)
        ]
    for name in launchers:
        own = [one[name] for one in rounds]
        row = {key: statistics.median(one[key] for one in own) for key in own[0]} | {"launcher": name}
        if name != "basic" and "basic" in launchers:
            faster = measure.ratio([one["basic"]["seconds"] for one in rounds], [one["seconds"] for one in own])
            row["faster_than_basic"] = faster["ratio"]
        if name != "basic":
            del row["share_not_training"]  # jobs overlap
        results.add(row | {"rounds": arguments.rounds})


if __name__ == "__main__":
    main()
