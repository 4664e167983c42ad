"""Training speed under settings of PyTorch, the optimizer, threads and the memory allocator.

    python benchmarks/speed/options.py [--rounds 3] [--steps 20] [--network laptop] [--out FILE] [overrides …]

Every variant is a job in a process of its own, since threads and allocators are chosen when a process starts; in each
round all take their turn, and the ratio to the default is taken within a round. Allocators are those that are installed
(such as by `apt-get install libjemalloc2 libtcmalloc-minimal4`).
"""

from __future__ import annotations

import ctypes.util
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import torch

from fer_lightning.training.trainer import quiet

NETWORKS = {
    "report": ["experiment=report_weighted", "protocol=kaggle", "data.batch_size=64"],
    "laptop": ["experiment=laptop"],
    "strong_cpu": ["experiment=strong_cpu"],
}


def variants() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Overrides and environment by name."""
    found: dict[str, tuple[list[str], dict[str, str]]] = {
        "default": ([], {}),
        "channels first": (["trainer.channels_last=false"], {}),
        "compiled": (["trainer.compile=true"], {}),
        "optimizer not fused": (["optimizer.fused=false"], {}),
    }
    if torch.cuda.is_available():
        found["compiled, CUDA graphs"] = (["trainer.compile=reduce-overhead"], {})
        found["compiled, autotuned"] = (["trainer.compile=max-autotune"], {})
        return found
    for threads in {1, os.cpu_count() or 1} - {torch.get_num_threads()}:
        found[f"{threads} threads"] = ([], {"OMP_NUM_THREADS": str(threads)})
    found["memory kept (glibc)"] = (
        [],
        {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"},
    )
    found["huge pages (glibc)"] = ([], {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
    for name in ("jemalloc", "tcmalloc_minimal"):
        if library := ctypes.util.find_library(name):
            found[name] = ([], {"LD_PRELOAD": library})
    return found


def speed(overrides: list[str], environment: dict[str, str], steps: int) -> float:
    """Images per second of a job in a new process; not a number if it fails."""
    command = [sys.executable, __file__, "--child", "--steps", str(steps), *overrides]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return math.nan
    return float(done.stdout.strip().splitlines()[-1])


def child(overrides: list[str], steps: int) -> None:
    from loop import WARM_UP, Job

    quiet()
    chosen = [overrides[0], "data=synthetic", *overrides[1:]]  # after the experiment, which may choose other data
    n = (WARM_UP + steps + 1) * measure.settings_of(chosen)["data"]["batch_size"]
    drawn = [f"data.synthetic.n_train={n}", "data.synthetic.n_val=30", "data.synthetic.n_test=30"]
    print(Job(measure.settings_of([*chosen, *drawn])).trained_per_second(steps))


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--network", choices=NETWORKS, default="laptop")
    parser.add_argument("--child", action="store_true", help="measure once, in this process")
    arguments, overrides = parser.parse_known_args()
    if arguments.child:
        child(overrides, arguments.steps)
        return
    given = [*NETWORKS[arguments.network], *overrides]
    options = variants()
    if arguments.network == "strong_cpu":  # Muon has no fused form
        del options["optimizer not fused"]
    runs: dict[str, Callable[[], float]] = {
        name: partial(speed, [*given, *own], environment, arguments.steps)
        for name, (own, environment) in options.items()
    }
    results = measure.Results(arguments.out, precision=measure.settings_of(given)["trainer"]["precision"])

    def row(name: str, values: list[float], default: list[float]) -> dict[str, Any]:
        row = {"network": arguments.network, "variant": name, "rounds": len(values)}
        if any(map(math.isnan, (*values, *default))):
            return row | {"failed": True}
        return row | {"images_per_second": statistics.median(values), **measure.ratio(values, default)}

    def write(speeds: dict[str, list[float]]) -> None:
        results.replace(row(name, values, speeds["default"]) for name, values in speeds.items())

    measure.take_turns(runs, arguments.rounds, after=write)
    print(json.dumps(results.rows, indent=1))


if __name__ == "__main__":
    main()
