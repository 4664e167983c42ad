"""All measurements of docs/performance.md, one after another, on a machine that does nothing else.

    python benchmarks/speed/all.py --data fer2013.csv --zip fer2013-folder.zip --work WORK [--peers FOLDER] [--only …]

About three hours on two cores with bf16. WORK gets a JSON file and a log of each part; parts that are finished there,
by the same commit, are not repeated, so that the command can be interrupted; each begins when the machine has become
idle. At the end, copy WORK/*.json to docs/performance and run page.py: files written there at once would change the
commit that the next part states. FOLDER holds the clones lethesec, usef-kh and template that peers.py asks for; without
it, they are left out. timm, torchvision and the allocators of options.py must be installed, and 12 GB of disk be free.
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from fer_lightning.runs.results import git_commit

HERE = Path(__file__).parent

IDLE = 0.5
"""Load of the last minute up to which a machine counts as idle."""

PATIENCE = 180.0
"""Seconds in which it becomes idle after a part."""

CLONES = ("lethesec", "usef-kh", "template")


def missing(arguments: argparse.Namespace) -> list[str]:
    """What is not there, without which a part would fail or leave rows out."""
    files = [arguments.data, arguments.zip, *((arguments.peers / name) for name in CLONES if arguments.peers)]
    modules = [name for name in ("timm", "torchvision") if importlib.util.find_spec(name) is None]
    libraries = [name for name in ("jemalloc", "tcmalloc_minimal") if ctypes.util.find_library(name) is None]
    return [*(str(path) for path in files if not path.exists()), *modules, *libraries]


def becomes_idle() -> bool:
    until = time.monotonic() + PATIENCE
    while os.getloadavg()[0] > IDLE and time.monotonic() < until:
        time.sleep(5)
    return os.getloadavg()[0] <= IDLE


def parts(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Script and options by name, without --out."""
    data, work = ["--data", str(arguments.data)], arguments.work
    training = ["report", "laptop", "small batch"]
    scoring = ["validation", "validation, report", "test", "validation, in training"]
    found: dict[str, list[str]] = {
        "loop": ["loop", "--cases", *training, *scoring],
        "loop-fp32": ["loop", "--cases", *training, *scoring, "--rounds", "3", "precision=fp32"],
        "options": ["options", "--network", "laptop"],
        "options-report": ["options", "--network", "report", "--rounds", "2", "--steps", "10"],
        "candidates": ["candidates", "--rounds", "3"],
        "reading": ["reading", str(arguments.data), str(arguments.zip)],
        "sweeps": ["sweeps"],
        "growth": ["growth", *data],
        "growth-near": ["growth", *data, "--near"],
        "speed_65": ["to_accuracy", "speed_65", *data, "--runs", str(work / "runs")],
        "speed_report": ["to_accuracy", "speed_report", *data, "--runs", str(work / "runs")],
    }
    if arguments.peers:
        clones = {name: arguments.peers / name for name in CLONES}
        found["peers"] = ["peers", *data, *(part for name, path in clones.items() for part in (f"--{name}", str(path)))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="FER-2013 as a CSV")
    parser.add_argument("--zip", type=Path, required=True, help="FER-2013 as a folder in an archive")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", nargs="+", help="names of parts")
    arguments = parser.parse_args()
    if absent := missing(arguments):
        parser.error(f"not there: {', '.join(absent)}")
    (arguments.work / "runs").mkdir(parents=True, exist_ok=True)
    commit = git_commit()
    for name, (script, *options) in parts(arguments).items():
        out, done = arguments.work / f"{name}-cpu.json", arguments.work / f"{name}.done"
        if (arguments.only and name not in arguments.only) or (done.exists() and done.read_text() == commit):
            continue
        if not becomes_idle():
            parser.error(f"the load of this machine is {os.getloadavg()[0]:.1f}; wait until nothing else runs")
        started = time.monotonic()
        with (arguments.work / f"{name}.log").open("w") as log:
            command = [sys.executable, str(HERE / f"{script}.py"), *options, "--out", str(out)]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        if code == 0:
            done.write_text(commit)
        print(f"{name}: {'done' if code == 0 else 'failed'} in {(time.monotonic() - started) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
