"""What the scripts of this folder share: the machine, configs, taking turns, and files of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from fer_lightning.app import CONF
from fer_lightning.config import schema
from fer_lightning.config.precision import has_native_bf16
from fer_lightning.config.resolve import resolve
from fer_lightning.runs.results import git_commit

ROOT = Path(__file__).parents[2]

LEAN = ("callbacks=none", "trainer.progress_bar=false", "logger=none")
"""Overrides of a job that only trains."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the options that all scripts have."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--out", type=Path, help="a JSON file, from which page.py makes docs/performance.md")
    return result


INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""That distinguish generations of processors, whose names may be alike."""


def machine() -> dict[str, Any]:
    """Processor or GPU, cores, threads, whether bf16 is native, load before the script, date and PyTorch's version."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        facts = {line.partition(":")[0].strip(): line.partition(": ")[2] for line in lines if ": " in line}
        processor = facts.get("model name", processor)
        has = [name for name in INSTRUCTIONS if name in facts.get("flags", "").split()]
        if "cpu family" in facts:
            processor += f" (family {facts['cpu family']}, model {facts['model']}; {', '.join(has)})"
    return {
        "processor": processor,
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "native bf16": has_native_bf16("cuda" if torch.cuda.is_available() else "cpu"),
        "torch": torch.__version__.partition("+")[0],
    }


def settings_of(overrides: Sequence[str], lean: Sequence[str] = LEAN) -> dict[str, Any]:
    """The resolved config of `python train.py OVERRIDES`, without what cannot be used outside a run folder."""
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", [*lean, *overrides]), typed=overrides)


def decay_of(overrides: Sequence[str]) -> float | None:
    """The decay of the average of the weights in the config of `python train.py OVERRIDES`, None for no average."""
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        callbacks = compose("config", list(overrides)).callbacks
    return float(callbacks.ema.decay) if callbacks and callbacks.get("ema") else None


def take_turns(
    measurements: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    unit: str = "images/s",
    after: Callable[[dict[str, list[float]]], object] = lambda results: None,
) -> dict[str, list[float]]:
    """Results by name, one for each round; in each round all take their turn, and another one begins. `after` is called
    with the results after each round."""
    names = list(measurements)
    results: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        begin = number % len(names)
        for name in names[begin:] + names[:begin]:
            results[name].append(measurements[name]())
        print(f"round {number}: " + ", ".join(f"{name} {results[name][-1]:.4g} {unit}" for name in names), flush=True)
        after(results)
    return results


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of `one` over `other`, round by round: other load on the machine slows both alike."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "ratios": ratios}


class Results:
    """Rows of a script, printed as they are added and written with the command, machine and commit, so that a script
    that is cut off leaves those before.

    Args:
        out: the JSON file; None for none.
        about: what concerns all rows.
    """

    def __init__(self, out: Path | None, **about: Any) -> None:
        script = Path(sys.argv[0]).resolve().relative_to(ROOT)
        command = shlex.join(["python", str(script), *_without_paths(sys.argv[1:])])
        self.out, self.rows = out, list[dict[str, Any]]()
        self.content = {
            "benchmark": script.stem, "command": command, "commit": git_commit(), "machine": machine(), **about,
            "rows": self.rows,
        }  # fmt: skip

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        print(json.dumps({key: value for key, value in row.items() if not isinstance(value, list)}), flush=True)
        self._write()

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write these rows in place of those before."""
        self.rows[:] = map(dict, rows)
        self._write()

    def note(self, **about: Any) -> None:
        """Set what concerns all rows."""
        self.content |= about
        self._write()

    def _write(self) -> None:
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.content, indent=1) + "\n")


def _without_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments without --out, and with the names of files alone, wherever they are on this machine."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--out" and not argument.startswith("--out="):
            key, equals, value = argument.rpartition("=")
            named = Path(value).is_absolute() or ("/" in value and Path(value).exists())
            kept.append(key + equals + (Path(value).name if named else value))
        skip = argument == "--out"
    return kept
