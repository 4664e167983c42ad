"""What each part of `experiment=strong_cpu` is worth, at two thirds of its width: the recipe, and one part changed.

    python benchmarks/ablation.py --data fer2013.csv.gz --folder FOLDER [--share 3] [--epochs 40] [--seeds 0 1]
    fer-lightning compare FOLDER   # there the recipe is called "common"

Trained on a third of the Training images, by default, less a hold-out, selected on the hold-out and scored on
PublicTest. PrivateTest, on which results are reported, takes no part. One of the parts alone: --only NAME. Finished
runs in FOLDER are not repeated, so that the command can be interrupted; another share or number of epochs needs another
FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finetuning import run, set_aside, write

from fer_lightning.data.readers import sources

SETTINGS = {
    "strong_cpu": [],
    "adamw": ["optimizer=adamw", "optimizer.lr=5e-3", "optimizer.weight_decay=0.05"],
    "no average of the weights": ["callbacks=default"],
    "no label smoothing": ["imbalance.loss.label_smoothing=0"],
    "reduced at first": ["augment.first_side=24"],
    "light augmentation": [
        *("augment.rotate=10", "augment.scale=0.1", "augment.brightness=0.2", "augment.contrast=0.2"),
        "augment.erase=0",
    ],
    "bilinear": ["augment.interpolation=bilinear"],
    "statistics of augmented images": ["augment.batch_norm_images=0"],
    "stronger augmentation": ["augment.rotate=20", "augment.scale=0.2", "augment.shift=0.15", "augment.erase=0.5"],
    "mixup": ["mix=mixup", "mix.until=0.85"],
    "cutmix": ["mix=cutmix", "mix.until=0.85"],
    "dropout": ["model.dropout=0.3"],
    "stochastic depth": ["model.drop_path=0.2"],
    "no erasing": ["augment.erase=0"],
    "no scaling": ["augment.scale=0"],
    "no rotation": ["augment.rotate=0"],
    "no warm-up": ["schedule.warmup=0"],
    "weight decay 0.01": ["optimizer.weight_decay=0.01"],
    "weight decay 0.2": ["optimizer.weight_decay=0.2"],
    "whole images": ["augment.crop=null"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="FER-2013 as a CSV")
    parser.add_argument("--folder", type=Path, required=True, help="of the data and the runs")
    parser.add_argument("--share", type=int, default=3, help="train on one in so many Training images")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="of the settings")
    parser.add_argument("--overrides", nargs="*", default=[], help="of every run, such as precision=bf16")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    faces = sources.load(arguments.data)
    data = arguments.folder / "part.csv"
    training = faces.rows("train")
    part = training[set_aside(faces.labels[training], round(len(training) / arguments.share))]
    write(data, faces, {"Training": part, "PublicTest": faces.rows("public")})
    common = [f"data.path={data}", "protocol=report", "model.width=32", f"trainer.max_epochs={arguments.epochs}"]
    common += arguments.overrides
    print(f"{'setting':32}seed  accuracy  macro-F1, on PublicTest", flush=True)
    for seed in arguments.seeds:
        for name in arguments.only:
            folder = arguments.folder / f"{name.replace(' ', '-')}-{seed}"
            scores = run(folder, "experiment=strong_cpu", *SETTINGS[name], *common, f"seed={seed}")
            print(f"{name:32}{seed:4}  {scores['test/accuracy']:8.3f}  {scores['test/f1_macro']:8.3f}", flush=True)


if __name__ == "__main__":
    main()
