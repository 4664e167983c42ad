"""What only a GPU can show: the tests marked `gpu`, killing and resuming, two ranks.

    python benchmarks/gpu/checks.py --data fer2013.csv --work WORK [--out OUT] [--minutes 9]

Writes checks.json and the output of each check. Two ranks need two GPUs, since NCCL takes one for
each; with one GPU that check is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from common import ROOT, Call

RECIPE = ("protocol=kaggle", "logger=csv", "model=resnet18", "model.width=64", "model.stem=small", "augment=window")


def main() -> None:
    call = Call(__doc__ or "")
    call.start()
    python, benchmarks = sys.executable, ROOT / "benchmarks"
    short = [f"data.path={call.data}", *RECIPE, "trainer.max_epochs=3", *call.overrides]
    checks = {
        # Warnings of versions that CI does not have are no failures.
        "tests": [python, "-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider"],
        "resume": [python, str(benchmarks / "resume.py"), "--out", str(call.work / "resume"), *short],
        "resume-deterministic": [
            *(python, str(benchmarks / "resume.py"), "--out", str(call.work / "deterministic")),
            *(*short, "trainer.deterministic=true"),
        ],
        "one-rank": [python, str(ROOT / "train.py"), *short, f"hydra.run.dir={call.work / 'one'}"],
    }
    gpus = torch.cuda.device_count()
    if gpus > 1:
        two = ["trainer.devices=2", f"hydra.run.dir={call.work / 'two'}"]
        checks["two-ranks"] = [python, str(ROOT / "train.py"), *short, *two]
    call.note(checks={}, gpus=gpus)
    for name, command in checks.items():
        with (call.out / f"{name}.txt").open("w") as log:
            succeeded = call.run(command, stdout=log, stderr=subprocess.STDOUT)
        call.note(checks=call.results["checks"] | {name: "passed" if succeeded else "failed or out of time"})
    said = (call.out / "tests.txt").read_text().strip().splitlines()
    call.note(tests=said[-1:])  # such as how many were skipped
    ranks = {}
    for name in ("one", "two"):
        metrics = call.work / name / "metrics.json"
        if metrics.exists():
            ranks[name] = json.loads(metrics.read_text())
    call.note(ranks=ranks)


if __name__ == "__main__":
    main()
