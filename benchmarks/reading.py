"""Time and peak memory of the first and the cached read of a source.

    python benchmarks/reading.py PATH [--rounds 5]

Each read is a process of its own; its time excludes imports, and each first read has a new cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import resource, sys, time
from pathlib import Path
from fer_lightning.data.readers.sources import load
started = time.perf_counter()
faces = load(sys.argv[1], cache_dir=Path(sys.argv[2]))
seconds = time.perf_counter() - started
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(faces))
"""


def read(path: Path, cache: str) -> tuple[float, float, int]:
    """Seconds, peak memory in MiB and faces of one read."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), cache], capture_output=True, text=True, check=True)
    seconds, memory, faces = done.stdout.split()
    return float(seconds), float(memory), int(faces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    first, cached = [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            first.append(read(arguments.path, cache))
            cached.append(read(arguments.path, cache))
    for name, rows in (("first", first), ("cached", cached)):
        seconds = [row[0] for row in rows]
        print(
            f"{name} read of {rows[0][2]:,} faces: {min(seconds):.2f} s at best, "
            f"{statistics.median(seconds):.2f} s median of {len(rows)}, peak {max(row[1] for row in rows):.0f} MiB"
        )


if __name__ == "__main__":
    main()
