"""The strong ResNet-50 with several seeds on a GPU, and their ensemble.

    python benchmarks/gpu/networks.py --data fer2013.csv --work WORK [--out OUT] [--seeds 0 1 2] [--epochs N]

Trains on Training, selects on PublicTest and scores PrivateTest once; seeds one after the other, by default for as
many epochs as all of them have time for by a short measurement. A run whose time is up is saved, and the same command
resumes it, as long as WORK is there. Writes networks.json (scores, images per second, their share of the device's own
rate in bf16 matrix products; of a run that is cut off its curve), and in 16 bits, in parts, the weights of the seeds
given by --send, by default of the last one that finished.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import SAVING, SCORING, Call, cli, in_parts, matrix_rate, operations_per_image

from fer_lightning.config import instantiate
from fer_lightning.runs.folder import load_settings

RECIPE = ("experiment=strong", "protocol=kaggle", "logger=csv", "model=resnet50", "model.stem=small", "model.width=64")

LONGEST = 120
"""Epochs of the recipe."""
IMAGES = 28_709
"""Of Training."""

EXPORT = """
import sys
from pathlib import Path
from fer_lightning.inference.export import export
export([sys.argv[1]], Path(sys.argv[2]), tta="flip", measure=False)
"""
"""Without scoring again, which takes the CPU minutes for this network."""


def images_per_second(run: Path) -> float:
    """Of training, the median of the epochs after the first."""
    with (run / "metrics.csv").open() as file:
        speeds = [float(row["train/images_per_second"]) for row in csv.DictReader(file)]
    return statistics.median(speeds[1:] or speeds)


def fitting(call: Call, seeds: int) -> int:
    """Epochs of the recipe that so many runs have time for, at most its own number."""
    probe = call.work / "probe"
    short = ("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2", "trainer.limit_train_batches=50")
    if call.train(probe, *RECIPE, *short) is None:
        return LONGEST
    epochs = 0.85 * images_per_second(probe) * (call.left - SAVING - SCORING * seeds) / (seeds * IMAGES)
    return min(LONGEST, max(2, int(epochs) // 2 * 2))  # every second one is validated


def curve(run: Path) -> list[list[str]]:
    """Epoch and accuracy on the validation images, as far as a run has come."""
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open() as file:
        return [[row["epoch"], row.get("val/accuracy", "")] for row in csv.DictReader(file)]


def operations(run: Path) -> int:
    """Of a training step of a run on one image."""
    settings = load_settings(run)
    return operations_per_image(instantiate.network(settings["model"], 7), settings["augment"]["crop"] or 48)


def together(call: Call, files: list[Path]) -> dict[str, Any] | None:
    """Scores of the files averaged, with flip averaging, on PrivateTest."""
    out = call.work / "together"
    evaluating = ["evaluate", *map(str, files), "--data", call.data, "--tta", "flip", "--out", str(out)]
    done = call.run(cli(*evaluating))
    return json.loads((out / "metrics.json").read_text()) if done else None


def main() -> None:
    call = Call(__doc__ or "")
    call.parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    call.parser.add_argument("--epochs", type=int, help="of each seed; by default as many as there is time for")
    call.parser.add_argument("--send", type=int, nargs="*", help="seeds whose weights are written to OUT")
    arguments = call.start()
    rate = matrix_rate()
    call.note(bf16_matrix_operations_per_second=rate, runs={})
    epochs = call.work / "epochs"
    if arguments.epochs or not epochs.exists():
        epochs.write_text(str(arguments.epochs or fitting(call, len(arguments.seeds))))
    recipe = (*RECIPE, f"trainer.max_epochs={epochs.read_text()}")
    files: dict[int, Path] = {}
    for seed in arguments.seeds:
        run, file = call.work / f"seed{seed}", call.work / f"strong-seed{seed}.safetensors"
        metrics = call.train(run, *recipe, f"seed={seed}")
        result: dict[str, Any] = metrics or {"curve": curve(run)}
        if metrics or result["curve"]:
            speed, cost = images_per_second(run), operations(run)
            share = speed * cost / rate
            result |= {"images_per_second": speed, "operations_per_image": cost, "share_of_matrix_rate": share}
        call.note(runs=call.results["runs"] | {f"seed {seed}": result})
        if metrics is None:
            print(f"seed {seed}: the time is up; the same command resumes it", file=sys.stderr)
            break
        if file.exists() or call.run([sys.executable, "-c", EXPORT, str(run), str(file)]):
            files[seed] = file
    for seed in list(files)[-1:] if arguments.send is None else arguments.send:
        if seed in files:
            call.note(parts=call.results.get("parts", {}) | {f"seed {seed}": in_parts(files[seed], call.out)})
    if len(files) > 1:
        call.note(together=together(call, list(files.values())))


if __name__ == "__main__":
    main()
