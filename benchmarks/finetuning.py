"""Fine-tuning on few images against training from scratch, on images that the trained network has not seen.

    python benchmarks/finetuning.py --data fer2013.csv.gz --folder FOLDER [--sizes 200 1000 5000] [--seeds 0 1 2]

5,000 of the Training images, with the classes' shares, are set aside: they stand for the faces of a user. A network is
trained on the others (`experiment=laptop protocol=kaggle`, or the experiment given by --source), less those of the same
photographs, and fine-tuned on the first of those set aside (`experiment=finetune`, its own number of epochs). From
scratch (--scratch), as many images are learnt for 25 epochs, or for --at-least divided by their number, which is more
than fine-tuning is given. All are selected on PublicTest and scored on PrivateTest. Seeds differ in training alone.

There are two tasks: the seven classes, whose head is taken over, and four classes of one's own, which need a new head.
Finished runs in FOLDER are not repeated, so that the command can be interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_lightning.config.dataset import with_duplicate_groups
from fer_lightning.data.readers import sources
from fer_lightning.data.table import FaceTable
from fer_lightning.runs.folder import finished

TRAIN = Path(__file__).parents[1] / "train.py"

ASIDE = 5000

TASKS = {
    "seven classes": "",
    "four classes": "data.merge={disgust: angry, fear: angry, sad: angry}",
}


def set_aside(labels: NDArray[np.int64], n: int, seed: int = 0) -> NDArray[np.int64]:
    """`n` indices in random order, whose classes have their shares in any first part of them."""
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        position[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)  # evenly spaced within each class
    return np.argsort(position)[:n]


def write(path: Path, faces: FaceTable, parts: Mapping[str, NDArray[np.int64]]) -> None:
    """A CSV as the challenge's with the rows given for each Usage."""
    if path.exists():
        return
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for usage, rows in parts.items():
            for row in rows:
                writer.writerow([int(faces.labels[row]), " ".join(map(str, faces.images[row].ravel())), usage])
    temporary.rename(path)


def run(folder: Path, *overrides: str) -> dict[str, float]:
    """The metrics of a run, which is trained unless it has been."""
    if (metrics := finished(folder)) is None:
        command = [sys.executable, str(TRAIN), *overrides, f"hydra.run.dir={folder}"]
        if (folder / "config.yaml").exists():
            command = [sys.executable, str(TRAIN), f"resume={folder}"]
        subprocess.run(command, check=True)
        metrics = finished(folder)
    assert metrics is not None
    return {key: float(value) for key, value in metrics.items() if key.startswith("test/")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="FER-2013 as a CSV")
    parser.add_argument("--folder", type=Path, required=True, help="of the data and the runs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--source", default="laptop", help="experiment of the network that is fine-tuned")
    parser.add_argument("--scratch", default="laptop", help="experiment that trains from scratch")
    parser.add_argument("--at-least", type=int, default=50_000, help="images from scratch, over all epochs")
    parser.add_argument("--overrides", nargs="*", default=[], help="of every run, such as precision=bf16")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    faces = with_duplicate_groups(sources.load(arguments.data), {"twins": "near", "cache_dir": None})
    training = faces.rows("train")
    aside = set_aside(faces.labels[training], ASIDE)
    groups = faces.duplicate_groups
    others = training[~np.isin(groups[training], groups[training[aside]])]
    tests = {"PublicTest": faces.rows("public"), "PrivateTest": faces.rows("private")}
    write(folder / "others.csv", faces, {"Training": others} | tests)
    source = folder / "source"
    common = ["protocol=kaggle", *arguments.overrides]
    scores = run(source, f"experiment={arguments.source}", f"data.path={folder}/others.csv", *common)
    print(
        f"source, on {len(others):,} other images: accuracy {scores['test/accuracy']:.3f}, "
        f"F1 {scores['test/f1_macro']:.3f}"
    )
    rows = []
    for size in arguments.sizes:
        data = folder / f"{size}.csv"
        write(data, faces, {"Training": training[aside[:size]]} | tests)
        epochs = max(25, round(arguments.at_least / size))
        ways = {
            "from scratch": [
                *(f"experiment={arguments.scratch}", f"trainer.max_epochs={epochs}"),
                f"trainer.check_val_every_n_epoch={epochs // 25}",  # of PublicTest, as large as 18 epochs of 200 images
            ],
            "fine-tuned": ["experiment=finetune", f"init_from={source}"],
        }
        for task, merge in TASKS.items():
            for way, overrides in ways.items():
                names = [f"{size}-{task}-{way}-{seed}".replace(" ", "-") for seed in arguments.seeds]
                given = [*overrides, f"data.path={data}", *common, *([merge] if merge else [])]
                runs = [
                    run(folder / name, *given, f"seed={seed}")
                    for name, seed in zip(names, arguments.seeds, strict=True)
                ]
                rows.append({"images": size, "task": task, "way": way})
                for score in ("accuracy", "f1_macro"):
                    values = [one[f"test/{score}"] for one in runs]
                    rows[-1][score] = statistics.mean(values)
                    rows[-1][f"{score}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
                print(rows[-1], flush=True)
    (folder / "finetuning.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("\n| images | task | way | accuracy | macro-F1 |\n|---:|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['images']:,} | {row['task']} | {row['way']} | {row['accuracy']:.3f} ± {row['accuracy_sd']:.3f} | "
            f"{row['f1_macro']:.3f} ± {row['f1_macro_sd']:.3f} |"
        )


if __name__ == "__main__":
    main()
