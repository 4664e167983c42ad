"""Make docs/performance.md and its figures from the results in docs/performance/.

    python benchmarks/speed/page.py [docs/performance]

The text around the tables is in `SECTIONS` below. Results are the JSON files that the other scripts write with
`--out docs/performance/<script>-<machine>.json`; a section without results says that it has not been run.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from fer_lightning.report.style import BLUE, DPI, GREEN, GREY, ORANGE, VERMILLION, styled

Result = Mapping[str, Any]


class Column(NamedTuple):
    """A column of a table: its heading, and the cell of a row."""

    heading: str
    cell: Callable[[Mapping[str, Any]], str]
    right: bool = True


Rows = Sequence[Mapping[str, Any]]


class Section(NamedTuple):
    """A heading, what is measured, the script that measures it, and its tables by the key of their rows: their columns,
    or what makes them."""

    heading: str
    text: str
    script: str
    tables: Mapping[str, Sequence[Column] | Callable[[Rows], str]]
    figure: str | None = None
    caption: str = ""


def text(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: str(row[key])


def number(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else format(row[key], form)


def interval(row: Mapping[str, Any]) -> str:
    if row.get("failed"):
        return "failed"
    return f"{row['ratio']:.3f} ({row['lowest']:.3f} to {row['highest']:.3f})"


def by_size(rows: Rows) -> str:
    """Milliseconds per image of each part, by number of images; then those of each further image from one number to the
    next, which are free of what a job costs whatever its size, with the last over the first of the steps that doubled
    the time, below which the difference is noise; then peak memory."""
    sizes = sorted({row["images"] for row in rows})
    seconds = {(row["part"], row["images"]): row["seconds"] for row in rows}
    parts = list(dict.fromkeys(row["part"] for row in rows))
    measured = {part: [n for n in sizes if (part, n) in seconds] for part in parts}
    per_image = [{"part": part} | {str(n): 1e3 * seconds[part, n] / n for n in measured[part]} for part in parts]
    memory = {(row["part"], row["images"]): row["memory_mib"] for row in rows}
    columns = [Column(f"{n:,} images", number(str(n), ".4f")) for n in sizes]
    tables = [table([Column("ms per image", text("part"), right=False), *columns], per_image)]
    if steps := list(pairwise(sizes)):
        further = [
            {"part": part}
            | {
                f"{a}": 1e3 * (seconds[part, b] - seconds[part, a]) / (b - a)
                for a, b in steps
                if {a, b} <= set(measured[part])
            }
            for part in parts
        ]
        columns = [Column(f"{a:,} to {b:,}", number(f"{a}", ".4f")) for a, b in steps]
        if len(steps) > 1:
            last = f"{steps[-1][0]}"
            for row in further:
                doubled = [a for a, b in steps if seconds[row["part"], b] >= 2 * seconds[row["part"], a]]
                row["growth"] = row[last] / row[f"{doubled[0]}"] if doubled and last in row else None
            columns.append(Column("last / first to double", number("growth", ".2f")))
        tables.append(table([Column("ms per further image", text("part"), right=False), *columns], further))
    columns = [Column(f"{n:,} images", number(str(n), ",.0f")) for n in sizes]
    most = [{"part": part} | {str(n): memory[part, n] for n in measured[part]} for part in parts]
    tables.append(table([Column("peak memory, MiB", text("part"), right=False), *columns], most))
    if pairs := [row for row in rows if "pairs" in row]:
        columns = [
            Column("part", text("part"), right=False),
            Column("images", number("images", ",")),
            Column("pairs found", number("pairs", ",")),
            Column("of all", number("found_of_all", ".4f")),
        ]
        tables.append(table(columns, pairs))
    return "\n\n".join(tables)


SECTIONS = [
    Section(
        "The training loop",
        "Images per second of a job, with its augmentation, metrics and CSV log, over those of a bare loop or, for "
        "validation and test, of forward passes: the same network, precision and layout on one fixed batch in memory. "
        "Validation in training first estimates the statistics of batch norm from 2,048 training images, and the bare "
        "loop passes as many. Median of the ratios within rounds, lowest and highest. Aim: 0.97, and 0.95 for "
        "validation and test.",
        "speed/loop",
        {
            "rows": [
                Column("case", text("case"), right=False),
                Column("job", text("overrides"), right=False),
                Column("precision", text("precision"), right=False),
                Column("batch", number("batch", ",")),
                Column("bare, images/s", number("bare", ",.0f")),
                Column("job, images/s", number("job", ",.0f")),
                Column("job / bare", interval),
            ]
        },
    ),
    Section(
        "Peers' loops",
        "The same network, on as many augmented samples in batches of as many, through the loops of other projects: "
        "[LetheSec](https://github.com/LetheSec/Fer2013-Facial-Emotion-Recognition-Pytorch) (five crops of an image), "
        "[usef-kh/fer](https://github.com/usef-kh/fer) (ten), and the LightningModule of "
        "[lightning-hydra-template](https://github.com/ashleve/lightning-hydra-template) with a DataLoader of two "
        "workers. The second table: seconds of reading all of FER-2013, without imports, and from the command to the "
        "first batch, of the peer and of this project without and with its cache.",
        "speed/peers",
        {
            "rows": [
                Column("network", text("network"), right=False),
                Column("peer", lambda row: f"{row['peer']} ({row['peer_commit']})", right=False),
                Column("samples", number("samples", ",")),
                Column("batch", number("batch", ",")),
                Column("peer, s", number("peer_seconds", ".2f")),
                Column("here, s", number("our_seconds", ".2f")),
                Column("in the default precision, s", number("in_default_precision", ".2f")),
                Column("peer / here", interval),
            ],
            "starts": [
                Column("peer", text("name"), right=False),
                Column("peer reads, s", number("peer reads", ".1f")),
                Column("here, s", number("ours reads", ".1f")),
                Column("peer / here", number("ratio of reads", ".1f")),
                Column("peer's first batch, s", number("peer", ".1f")),
                Column("here, first, s", number("ours, first", ".1f")),
                Column("here, cached, s", number("ours, cached", ".1f")),
                Column("peer / here, first", interval),
            ],
        },
    ),
    Section(
        "Settings",
        "Training speed over that of the defaults. `trainer.compile=true` compiles the network in place for training "
        "alone: names in checkpoints, resuming and exporting stay as they are.",
        "speed/options",
        {
            "rows": [
                Column("network", text("network"), right=False),
                Column("variant", text("variant"), right=False),
                Column("images/s", number("images_per_second", ",.0f")),
                Column("variant / default", interval),
            ]
        },
    ),
    Section(
        "Time to accuracy",
        "The clock includes everything but imports and the first read: training, validation, scoring, the report.",
        "speed/to_accuracy",
        {
            "rows": [
                Column("experiment", text("experiment"), right=False),
                Column("seed", text("seed")),
                Column("accuracy", number("accuracy", ".4f")),
                Column("macro-F1", number("f1_macro", ".4f")),
                Column("time, min", lambda row: f"{row['seconds'] / 60:.1f}"),
                Column("images/s", number("images_per_second", ",.0f")),
                Column("precision", text("precision"), right=False),
                Column("commit", text("commit"), right=False),
            ],
            "summary": [
                Column("experiment", text("experiment"), right=False),
                Column("seeds", text("seeds")),
                Column("mean accuracy", lambda row: f"{row['accuracy']:.4f} ± {row['sd'] or 0:.4f}"),
                Column("mean macro-F1", number("f1_macro", ".4f")),
                Column("mean time, min", lambda row: f"{row['seconds'] / 60:.1f}"),
                Column("aim", lambda row: f"{row['target']} in {row['limit'] / 60:g} min" if row.get("limit") else ""),
            ],
        },
        "to_accuracy.png",
        "Accuracy on the validation images over seconds of training",
    ),
    Section(
        "Growth",
        "Time per image of each part of a job on FER-2013 repeated, each copy shifted and with noise. What does not "
        "depend on the number of images, such as the figures of the report, counts for most at a thousand of them; the "
        "second table leaves it out, and its last column divides the last step by the first that doubled the time of "
        "the part. Peak memory counts the pages of the cache's memory map as well, which the system "
        "drops where others need memory; that of a process's own is below. Images beyond "
        "`data.resident_gib` are not copied to the device: batches are read from the memory map of the cache.",
        "speed/growth",
        {
            "rows": by_size,
            "streamed": [
                Column("images trained on", number("trained", ",")),
                Column("on the device, images/s", number("resident", ",.0f")),
                Column("from the memory map, images/s", number("mapped", ",.0f")),
                Column("map / device", interval),
                Column("own memory, device, MiB", number("memory, on the device", ",.0f")),
                Column("own memory, map, MiB", number("memory, from the memory map", ",.0f")),
            ],
        },
        "growth.png",
        "Milliseconds per image over the number of images",
    ),
    Section(
        "Limits of a GPU",
        "Training steps of a ResNet-50 with the small stem on one batch, in bf16, and their arithmetic as a share of "
        "the device's own rate of bf16 matrix products.",
        "gpu/speed",
        {
            "rows": [
                Column("compiled", lambda row: row["compile"] or "no", right=False),
                Column("batch", number("batch", ",")),
                Column("images/s", number("images_per_second", ",.0f")),
                Column("share of the matrix rate", number("share", ".3f")),
            ]
        },
    ),
    Section(
        "Sweeps",
        "Short jobs: the share of the time that is not training or validation, and what the joblib launcher gains "
        "where jobs take one thread.",
        "speed/sweeps",
        {
            "rows": [
                Column("launcher", text("launcher"), right=False),
                Column("threads", text("threads"), right=False),
                Column("jobs", text("jobs")),
                Column("training of a job, s", number("training_per_job", ".1f")),
                Column("sweep, s", number("seconds", ".0f")),
                Column("not training", number("share_not_training", ".3f")),
                Column("not training, of a job, s", number("not_training_per_job", ".1f")),
                Column("faster than basic", number("faster_than_basic", ".2f")),
            ]
        },
    ),
    Section(
        "Reading",
        "Each read is a process of its own; imports are not counted. Each first read has a new cache.",
        "speed/reading",
        {
            "rows": [
                Column("source", text("source"), right=False),
                Column("read", text("read"), right=False),
                Column("best, s", number("best", ".2f")),
                Column("median, s", number("median", ".2f")),
                Column("processor time, s", number("cpu", ".2f")),
                Column("peak memory, MiB", number("memory_mib", ",.0f")),
            ]
        },
    ),
    Section(
        "Networks",
        "Forward and backward of a batch; the step of Muon that follows has a column of its own.",
        "speed/candidates",
        {
            "rows": [
                Column("network", text("network"), right=False),
                Column("pixels", text("pixels")),
                Column("batch", text("batch")),
                Column("parameters", number("parameters", ",")),
                Column("multiply-adds, million", lambda row: f"{row['multiply_adds'] / 1e6:.1f}"),
                Column("images/s", number("images_per_second", ",.0f")),
                Column("GFLOPS", number("gflops", ".0f")),
                Column("Muon, ms", number("optimizer_ms", ".0f")),
            ]
        },
    ),
]


def where(result: Result) -> str:
    """The machine, command and commit of a result."""
    machine = result["machine"]
    device = machine["gpu"] or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    bf16 = "with" if machine["native bf16"] else "without"
    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    return (
        f"`{result['command']}`, commit {result['commit']}: {device}, {bf16} native bf16, torch {machine['torch']}"
        + (f", {versions}" if versions else "")
        + (f"; {machine['date']}, load before it {machine['load']}" if "date" in machine else "")
        + "."
    )


def wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


def table(columns: Sequence[Column], rows: Rows) -> str:
    lines = [
        "| " + " | ".join(column.heading for column in columns) + " |",
        "|" + "|".join("---:" if column.right else "---" for column in columns) + "|",
    ]
    lines += ["| " + " | ".join(column.cell(row) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


@styled
def growth(results: Sequence[Result]) -> Figure:
    """Time per image of each part over the number of images."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    on_cpus = [result for result in results if not result["machine"]["gpu"]]
    rows = pd.DataFrame({"result": i, **row} for i, result in enumerate(on_cpus) for row in result["rows"])
    for ((_, part), some), marker in zip(
        rows.groupby(["result", "part"], sort=False), cycle("osD^vP*Xh<>"), strict=False
    ):
        per_image = 1e3 * some["seconds"] / some["images"]
        axes.plot(some["images"], per_image, marker=marker, markersize=5, linewidth=1.2, label=part)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("images")
    axes.set_ylabel("ms per image")
    axes.grid(visible=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


@styled
def to_accuracy(results: Sequence[Result]) -> Figure:
    """Accuracy on the validation images over seconds of training."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for result, colour in zip(results, cycle((BLUE, ORANGE, GREEN, VERMILLION, GREY)), strict=False):
        for i, row in enumerate(result["rows"]):
            seconds, accuracy = zip(*row["curve"], strict=True)
            label = None if i else f"{row['experiment']}, {result['machine']['gpu'] or result['machine']['processor']}"
            axes.plot(seconds, [100 * a for a in accuracy], color=colour, linewidth=1.2, label=label)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("accuracy (%)")
    axes.grid(visible=True)
    axes.legend(loc="lower right")
    return figure


FIGURES: dict[str, Callable[[Sequence[Result]], Figure]] = {"growth.png": growth, "to_accuracy.png": to_accuracy}

HEAD = """# Performance

Made by `python benchmarks/speed/page.py` from the files in `docs/performance/`, which the scripts in
`benchmarks/speed/` write; change them, not this page. Ratios are of measurements that take turns in one run, since the
machines are shared.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[2] / "docs" / "performance")
    folder: Path = parser.parse_args().folder
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    parts = [HEAD]
    for section in SECTIONS:
        own = [result for result in results if result.get("benchmark") == Path(section.script).name]
        parts.append(f"## {section.heading}\n\n{wrapped(section.text)}\n")
        if not own:
            parts.append(f"`python benchmarks/{section.script}.py`: not yet run.\n")
        for result in own:
            parts.append(wrapped(where(result)) + "\n")
            for key, columns in section.tables.items():
                if rows := result.get(key):
                    parts.append((columns(rows) if callable(columns) else table(columns, rows)) + "\n")
        if section.figure and own:
            FIGURES[section.figure](own).savefig(folder / section.figure, dpi=DPI)
            parts.append(f"![{section.caption}]({folder.name}/{section.figure})\n")
    tried = folder / "tried.md"
    if tried.exists():
        parts.append(tried.read_text())
    folder.with_suffix(".md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
