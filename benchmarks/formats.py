"""One model in each of its formats: size, accuracy and time on one thread, in PyTorch, onnxruntime and a browser.

    python benchmarks/formats.py --data fer2013.csv.gz [--model MODEL] [--split val] [--assets FOLDER] [--rounds 3]

PyTorch reads the .safetensors file, onnxruntime the .onnx and the .int8.onnx; in the browser, the page of
`fer-lightning demo` runs the two in onnxruntime-web. Each answers the same faces, in batches of 64 and one by one. The
formats take turns in each round; times are medians over the rounds, accuracies are of the first. The difference is the
largest one of a probability from PyTorch's.

The browser needs playwright, Chromium and --assets, the folder of `fer-lightning demo --assets`. Without that it is
left out.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from photos import hardware

from fer_lightning.inference import zoo
from fer_lightning.inference.demo.server import server
from fer_lightning.inference.demo.site import site
from fer_lightning.inference.export import export
from fer_lightning.inference.labelled import split_of
from fer_lightning.inference.load import load, load_model
from fer_lightning.inference.onnxfile import Session
from fer_lightning.runs.results import git_commit

BATCH = 64

SINGLE = 50
"""Faces that are classified one by one."""

IN_THE_PAGE = """async ([faces, size, batch]) => {
    const { load } = await import("./load.js");
    window.networks ??= await load(() => {});
    const bytes = Uint8Array.from(atob(faces), (c) => c.charCodeAt(0));
    const crops = Array.from({ length: bytes.length / size }, (_, i) => bytes.subarray(i * size, (i + 1) * size));
    await window.networks.classify(crops.slice(0, batch));
    const result = [], started = performance.now();
    for (let i = 0; i < crops.length; i += batch) {
        for (const one of await window.networks.classify(crops.slice(i, i + batch))) result.push([...one]);
    }
    return { seconds: (performance.now() - started) / 1000, result };
}"""

Timed = Callable[[NDArray[np.uint8], int], tuple[float, NDArray[np.float64]]]
"""Seconds for, and probabilities of, faces in batches of a size."""


class Format(NamedTuple):
    name: str
    file: Path
    run: Timed


def python(path: Path) -> Timed:
    """A file in this process."""
    answer = Session(path, threads=1).probabilities if path.suffix == ".onnx" else load_model(path).probabilities

    def run(faces: NDArray[np.uint8], batch: int) -> tuple[float, NDArray[np.float64]]:
        answer(faces[:batch])
        started = time.perf_counter()
        parts = [answer(faces[start : start + batch]) for start in range(0, len(faces), batch)]
        return time.perf_counter() - started, np.concatenate(parts).astype(np.float64)

    return run


@contextlib.contextmanager
def browser(chromium: Any, path: Path, assets: Path) -> Iterator[Timed]:
    """An ONNX file in the page."""
    with server(site(path, assets), 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        page = chromium.new_page()
        page.set_default_timeout(0)
        page.goto(f"http://127.0.0.1:{running.server_port}/")

        def run(faces: NDArray[np.uint8], batch: int) -> tuple[float, NDArray[np.float64]]:
            text = base64.b64encode(faces.tobytes()).decode()
            answer = page.evaluate(IN_THE_PAGE, [text, faces[0].size, batch])
            return answer["seconds"], np.array(answer["result"])

        yield run
        running.shutdown()


def measure(
    formats: list[Format], faces: NDArray[np.uint8], labels: NDArray[np.int64], rounds: int
) -> list[dict[str, Any]]:
    """Size, accuracy, difference and times of each format."""
    many: dict[str, list[float]] = {one.name: [] for one in formats}
    single: dict[str, list[float]] = {one.name: [] for one in formats}
    answers: dict[str, NDArray[np.float64]] = {}
    for _ in range(rounds):
        for name, _, run in formats:
            seconds, probabilities = run(faces, BATCH)
            answers.setdefault(name, probabilities)
            many[name].append(seconds)
            single[name].append(run(faces[:SINGLE], 1)[0])
    reference = answers[formats[0].name]
    return [
        {
            "format": name,
            "bytes": file.stat().st_size,
            "accuracy": float((answers[name].argmax(1) == labels).mean()),
            "difference": float(np.abs(answers[name] - reference).max()),
            "faces_per_second": len(faces) / statistics.median(many[name]),
            "milliseconds_for_one": 1000 * statistics.median(single[name]) / SINGLE,
        }
        for name, file, _ in formats
    ]


def as_table(rows: list[dict[str, Any]]) -> str:
    """The measurements in Markdown."""
    lines = ["| format | size | accuracy | largest difference | faces/s | one face |", "|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {row['format']} | {row['bytes'] / 1e6:.2f} MB | {row['accuracy']:.4f} | {row['difference']:.1g} | "
        f"{row['faces_per_second']:.0f} | {row['milliseconds_for_one']:.1f} ms |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="FER-2013: CSV, folder or archive")
    parser.add_argument("--model", default=zoo.DEFAULT, help="run folder, file, or name of a shipped model")
    parser.add_argument("--split", default="val", help="as of fer-lightning evaluate")
    parser.add_argument("--assets", type=Path, help="folder of the demo's libraries")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("formats.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = zoo.find(arguments.model)
    loaded = load(path, accelerator="cpu")
    split = split_of([loaded], arguments.data, arguments.split, remedy="name other --data", trust=False)
    faces, labels = split.faces.images[split.rows], split.faces.labels[split.rows]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = [Path(folder, f"model{suffix}") for suffix in (".safetensors", ".onnx", ".int8.onnx")]
        for file in files:
            eight = file.name.endswith(".int8.onnx")  # to find the ranges of its activations
            export([path], file, name=loaded.name, data=arguments.data if eight and path.is_file() else None)
        names = ["PyTorch", "onnxruntime", "onnxruntime, 8 bits"]
        formats = [Format(name, file, python(file)) for name, file in zip(names, files, strict=True)]
        if arguments.assets:
            from playwright.sync_api import sync_playwright

            kinds = stack.enter_context(sync_playwright())
            chromium = kinds.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, file in (("browser", files[1]), ("browser, 8 bits", files[2])):
                formats.append(Format(name, file, stack.enter_context(browser(chromium, file, arguments.assets))))
        rows = measure(formats, faces, labels, arguments.rounds)
    result = {
        "model": arguments.model,
        "split": arguments.split,
        "faces": len(faces),
        "commit": git_commit(),
        "hardware": hardware(),
        "torch": torch.__version__,
        "formats": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{len(faces):,} faces, commit {result['commit']}, {result['hardware']}, torch {torch.__version__}\n")
    print(as_table(rows))


if __name__ == "__main__":
    main()
