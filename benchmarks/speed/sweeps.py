"""The share of a sweep's time that is not training, and what the joblib launcher gains on several cores.

    python benchmarks/speed/sweeps.py [--jobs 40] [--few 8] [--rounds 2] [--out FILE] [overrides …]

A sweep of short jobs on drawn faces over seeds. The share is that of the basic launcher, whose jobs follow one another
with all threads. Then sweeps of few jobs of one thread each take turns: with the basic launcher, and with joblib one on
each core. Training is `train/seconds` in the metrics of each job: epochs, their validation and their checkpoints.
Everything else is the start of Python, imports, data, scoring and the report.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import measure

JOB = [
    "experiment=quickstart",
    "data.synthetic.n_train=1300",
    "data.synthetic.n_test=400",
    "logger=csv",
    "trainer.max_epochs=3",
    "trainer.progress_bar=false",
]

LAUNCHERS = {"basic": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs={cores}"]}

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def sweep(
    launcher: str, jobs: int, overrides: list[str], folder: Path, environment: Mapping[str, str]
) -> dict[str, float]:
    """Seconds of a sweep, and of training in its jobs."""
    options = [option.format(cores=os.cpu_count()) for option in LAUNCHERS[launcher]]
    seeds = ",".join(map(str, range(jobs)))
    command = [
        sys.executable, str(measure.ROOT / "train.py"), "-m", *JOB, f"seed={seeds}", f"hydra.sweep.dir={folder}",
        *options, *overrides,
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    seconds = time.perf_counter() - started
    training = [json.loads(path.read_text())["train/seconds"] for path in folder.glob("*/metrics.json")]
    assert len(training) == jobs
    return {
        "jobs": jobs,
        "seconds": seconds,
        "training_per_job": statistics.median(training),
        "share_not_training": 1 - sum(training) / seconds,
        "not_training_per_job": (seconds - sum(training)) / jobs,
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=40, help="of the sweep whose share is measured")
    parser.add_argument("--few", type=int, default=8, help="jobs of the sweeps that take turns")
    parser.add_argument("--rounds", type=int, default=2)
    arguments, overrides = parser.parse_known_args()
    precision = measure.settings_of([*JOB, "logger=none", *overrides])["trainer"]["precision"]
    results = measure.Results(arguments.out, precision=precision)
    with tempfile.TemporaryDirectory() as temporary:
        folders = (Path(temporary) / str(number) for number in itertools.count())
        whole = sweep("basic", arguments.jobs, overrides, next(folders), {})
        results.add({"launcher": "basic", "threads": "default", **whole})

        def seconds(launcher: str) -> float:
            found[launcher] = sweep(launcher, arguments.few, overrides, next(folders), ONE_THREAD)
            return found[launcher]["seconds"]

        found: dict[str, dict[str, float]] = {}
        times = measure.take_turns({name: partial(seconds, name) for name in LAUNCHERS}, arguments.rounds, unit="s")
    for launcher in LAUNCHERS:
        row = {"launcher": launcher, "threads": "1", **found[launcher], "seconds": statistics.median(times[launcher])}
        if launcher != "basic":  # its jobs overlap
            del row["share_not_training"], row["not_training_per_job"]
            faster = measure.ratio(times["basic"], times[launcher])
            row |= {"faster_than_basic": faster["ratio"], "rounds": arguments.rounds}
        results.add(row)


if __name__ == "__main__":
    main()
