"""The Markdown tables of docs/results.md from run folders, beside those of the student report.

    python benchmarks/report_tables.py RUN [RUN …]

Each RUN is a finished run with protocol=report.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

REPORT = {
    "angry": (0.48, 0.37, 0.42, 958),
    "disgust": (0.64, 0.51, 0.57, 111),
    "fear": (0.42, 0.42, 0.42, 1024),
    "happy": (0.73, 0.73, 0.73, 1774),
    "sad": (0.42, 0.43, 0.43, 1247),
    "surprise": (0.74, 0.72, 0.73, 831),
    "neutral": (0.46, 0.55, 0.50, 1233),
    "accuracy": (None, None, 0.55, 7178),
    "macro avg": (0.56, 0.53, 0.54, 7178),
    "weighted avg": (0.55, 0.55, 0.55, 7178),
}
"""The report's table of its class-weighted model: precision, recall, F1, support."""


def headline(runs: list[Path]) -> str:
    """Accuracy and macro-F1 on all and on clean test images, a row a run."""
    lines = [
        "| run | accuracy (95 %) | balanced accuracy | macro-F1 | ECE | accuracy, clean | macro-F1, clean | seed |",
        "|---|---|---|---|---|---|---|---|",
        "| the report, class weights | 0.55 | 0.53 | 0.54 | | | | |",
    ]
    for run in runs:
        m, config = json.loads((run / "metrics.json").read_text()), OmegaConf.load(run / "config.yaml")
        lines.append(
            f"| {config.imbalance.name} | {m['test/accuracy']:.3f} ({m['test/accuracy_low']:.3f} to "
            f"{m['test/accuracy_high']:.3f}) | {m['test/balanced_accuracy']:.3f} | {m['test/f1_macro']:.3f} | "
            f"{m['test/ece']:.3f} | {m['test/clean/accuracy']:.3f} | {m['test/clean/f1_macro']:.3f} | {config.seed} |"
        )
    return "\n".join(lines)


def per_class(run: Path) -> str:
    """The per-class table of a run, each number with the report's in brackets."""
    ours = pd.read_csv(run / "report/classification_report.csv").set_index("class")
    lines = ["| class | precision | recall | F1 | support |", "|---|---|---|---|---|"]
    for name, theirs in REPORT.items():
        row = ours.loc[name]
        assert row["support"] == theirs[3], f"{run}: {name} has {row['support']} test images, not {theirs[3]}"
        cells = [
            "" if their is None else f"{row[column]:.2f} ({their:.2f})"
            for column, their in zip(("precision", "recall", "f1"), theirs, strict=False)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {theirs[3]:,} |")
    return "\n".join(lines)


def confusion(run: Path) -> str:
    """The confusion matrix of a run: rows are true classes."""
    matrix = pd.read_csv(run / "report/confusion_matrix.csv", index_col=0)
    lines = [f"| true \\ predicted | {' | '.join(matrix.columns)} |", "|---" * (len(matrix) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{n:,}' for n in row)} |"
        for name, row in zip(matrix.index, matrix.to_numpy(), strict=True)
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    print(headline(runs))
    for run in runs:
        name = OmegaConf.load(run / "config.yaml").imbalance.name
        print(f"\n### {name}: ours (in brackets: the report)\n\n{per_class(run)}\n")
        print(f"### {name}: confusion matrix\n\n{confusion(run)}")


if __name__ == "__main__":
    main()
