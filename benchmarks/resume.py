"""How much a resumed run differs from an uninterrupted one, on any device.

    python benchmarks/resume.py --out DIR [overrides …]

    # on a GPU, as users train; and again with trainer.deterministic=true
    python benchmarks/resume.py --out DIR accelerator=gpu precision=bf16 data.path=fer.csv trainer.max_epochs=3

Trains the same run three times: twice without interruption, whose difference is not due to resuming, and once ended by
SIGTERM in its second epoch, resumed, ended by SIGKILL and resumed again. Prints, and writes to DIR/resume.json, the
largest difference of a weight, the number of test images with another prediction, and whether scoring a checkpoint
twice gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "train.py")]


def train(*arguments: str) -> None:
    subprocess.run([*TRAIN, *arguments], check=True)


def end_in_second_epoch(run: Path, arguments: list[str]) -> None:
    """Start a run, end it by SIGTERM after its first epoch, resume it and kill it soon after."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen([*TRAIN, *(arguments if number == signal.SIGTERM else [f"resume={run}"])])
        before = (run / "metrics.csv").stat().st_mtime if (run / "metrics.csv").exists() else None
        while process.poll() is None:
            time.sleep(0.05)
            if number == signal.SIGKILL and before is not None:
                time.sleep(12)  # loaded, and some batches on
                break
            if (run / "metrics.csv").exists():
                time.sleep(0.5)
                break
        process.send_signal(number)
        code = process.wait()
        assert code == {signal.SIGTERM: 143, signal.SIGKILL: -9}[number], (
            f"the run finished first (exit code {code}): train longer"
        )


def difference(a: Path, b: Path) -> dict[str, float]:
    """Between the last weights and the predictions of two runs."""
    weights = [torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True) for run in (a, b)]
    first, second = (checkpoint["state_dict"] for checkpoint in weights)
    predictions = [pd.read_csv(run / "report/predictions.csv") for run in (a, b)]
    probabilities = [frame.filter(regex="^p_").to_numpy() for frame in predictions]
    changed = (predictions[0]["prediction"] != predictions[1]["prediction"]).sum()
    return {
        "weight": max(float((first[k].double() - second[k].double()).abs().max()) for k in first),
        "probability": float(abs(probabilities[0] - probabilities[1]).max()),
        "predictions": int(changed),
        "images": len(predictions[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments, overrides = parser.parse_known_args()
    runs = {name: arguments.out / name for name in ("whole", "again", "resumed")}
    for name in ("whole", "again"):
        train(*overrides, f"hydra.run.dir={runs[name]}")
    end_in_second_epoch(runs["resumed"], [*overrides, f"hydra.run.dir={runs['resumed']}"])
    train(f"resume={runs['resumed']}")
    scored = [arguments.out / f"scored{i}" for i in (1, 2)]
    for out in scored:
        command = ["evaluate", str(runs["whole"]), "--out", str(out)]
        subprocess.run([sys.executable, "-c", "from fer_lightning.cli import app; app()", *command], check=True)
    result = {
        "overrides": overrides,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "two whole runs": difference(runs["whole"], runs["again"]),
        "whole and resumed": difference(runs["whole"], runs["resumed"]),
        "scored twice, same bytes": len({(out / "report/predictions.csv").read_bytes() for out in scored}) == 1,
    }
    (arguments.out / "resume.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
