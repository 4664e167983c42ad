"""Time and peak memory of the first and the cached read of sources.

    python benchmarks/speed/reading.py PATH … [--rounds 5] [--out FILE]

Each read is a process of its own; its time excludes imports, and each first read has a new cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure

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
    parser = measure.parser(__doc__)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = measure.Results(arguments.out)
    for path in arguments.paths:
        kinds: dict[str, list[tuple[float, float, int]]] = {"first": [], "cached": []}
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for reads in kinds.values():
                    reads.append(read(path, cache))
        for kind, reads in kinds.items():
            seconds, memory, faces = zip(*reads, strict=True)
            results.add(
                {
                    "source": path.name,
                    "read": kind,
                    "faces": faces[0],
                    "best": min(seconds),
                    "median": statistics.median(seconds),
                    "memory_mib": max(memory),
                    "rounds": arguments.rounds,
                }
            )


if __name__ == "__main__":
    main()
