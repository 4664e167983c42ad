"""Metrics of six small fixed runs, to show that a refactoring changes no digit.

    python benchmarks/fixed_runs.py --out before.json                      # on the old commit
    python benchmarks/fixed_runs.py --out after.json --against before.json # on the new one

The runs use the CPU in fp32, so that their digits are comparable on one kind of CPU; one of them uses two processes.
`--repository` names another checkout to run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMMON = (
    "data=synthetic",
    "data.synthetic.n_train=420",
    "data.synthetic.n_val=140",
    "data.synthetic.n_test=280",
    "data.batch_size=32",
    "model=resnet18",
    "model.width=16",
    "accelerator=cpu",
    "precision=fp32",
    "optimizer=adamw",
    "schedule=onecycle",
    "trainer.max_epochs=4",
    "logger=none",
)

RUNS = {
    "none": ("imbalance=none",),
    "balanced": ("imbalance=balanced",),
    "weighted": ("imbalance=weighted",),
    "ldam_drw": ("imbalance=ldam_drw", "imbalance.loss.after=0.5"),
    "two_stage": ("imbalance=two_stage", "imbalance.retrain_after=0.5"),
    "weighted, two devices": ("imbalance=weighted", "trainer.devices=2"),
}

MEASURED = ("train/seconds", "train/images_per_second")
"""Metrics that differ from run to run."""


def run(repository: Path, overrides: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """The numbers of a run: metrics.json, and metrics.csv by epoch."""
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *COMMON, *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    numbers = {k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if isinstance(v, float | int)}
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            numbers |= {f"epoch {row['epoch']}: {k}": float(v) for k, v in row.items() if v}
    return {name: value for name, value in numbers.items() if not name.endswith(MEASURED)}


def compare(before: dict[str, Any], after: dict[str, Any]) -> str:
    """How many numbers are equal to the last digit, and the largest difference among the others."""
    common = before.keys() & after.keys()
    different = {name: abs(before[name] - after[name]) for name in common if before[name] != after[name]}
    text = f"{len(common) - len(different)} of {len(common)} equal"
    if different:
        largest = max(different, key=lambda name: different[name])
        text += f"; largest difference {different[largest]:.3g} ({largest})"
        text += f"; test/f1_macro {before['test/f1_macro']:.4f} -> {after['test/f1_macro']:.4f}"
    if only := sorted(before.keys() ^ after.keys()):
        text += f"; only on one side: {', '.join(only[:4])}{' …' if len(only) > 4 else ''}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--repository", type=Path, default=Path(__file__).resolve().parents[1])
    arguments = parser.parse_args()
    found = {}
    for name, overrides in RUNS.items():
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = run(arguments.repository, overrides, Path(scratch) / "run")
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.against:
        before = json.loads(arguments.against.read_text())
        for name in RUNS:
            print(f"{name:24} {compare(before[name], found[name])}")


if __name__ == "__main__":
    main()
