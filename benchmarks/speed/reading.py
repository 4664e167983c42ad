"""Time, processor time and peak memory of the first and the cached read of sources.

    python benchmarks/speed/reading.py PATH … [--rounds 5] [--against CHECKOUT] [--out FILE]

Each read is a process of its own; its time excludes imports, and each first read has a new cache. With --against, a
folder with another commit of this project (`git worktree add FOLDER COMMIT`), both take turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import measure

CHILD = """
import resource, sys, time
from pathlib import Path
from {module} import load
started, worked = time.perf_counter(), time.process_time()
faces = load(sys.argv[1], cache_dir=Path(sys.argv[2]))
seconds = time.perf_counter() - started, time.process_time() - worked
print(*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(faces))
"""

MODULES = ("fer_lightning.data.readers.sources", "fer_lightning.data.sources")
"""That have had `load`; the first one has it today."""


class Read(NamedTuple):
    seconds: float
    cpu_seconds: float
    memory_mib: float
    faces: float


def read(path: Path, cache: str, checkout: Path) -> Read:
    """One read, by the code of `checkout`."""
    module = next(name for name in MODULES if (checkout / name.replace(".", "/")).with_suffix(".py").is_file())
    command = [sys.executable, "-c", CHILD.format(module=module), str(path), cache]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=cache, env=os.environ | {"PYTHONPATH": str(checkout)}
    )
    return Read(*map(float, done.stdout.split()))


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    arguments = parser.parse_args()
    results = measure.Results(arguments.out)
    checkouts = {"": measure.ROOT}
    if arguments.against:
        checkouts[commit_of(arguments.against)] = arguments.against.resolve()
    for path in arguments.paths:
        reads = dict[tuple[str, str], list[Read]]()
        for number in range(arguments.rounds):
            for commit, checkout in list(checkouts.items())[:: -1 if number % 2 else 1]:
                with tempfile.TemporaryDirectory() as cache:
                    for kind in ("first", "cached"):
                        reads.setdefault((kind, commit), []).append(read(path.resolve(), cache, checkout))
        for (kind, commit), some in sorted(reads.items(), reverse=True):
            seconds, cpu_seconds, memory, faces = zip(*some, strict=True)
            results.add(
                {
                    "source": path.name,
                    "read": kind + (f", commit {commit}" if commit else ""),
                    "faces": int(faces[0]),
                    "best": min(seconds),
                    "median": statistics.median(seconds),
                    "cpu": statistics.median(cpu_seconds),
                    "memory_mib": max(memory),
                    "rounds": arguments.rounds,
                    **measure.ratio(seconds, [each.seconds for each in reads[kind, ""]]),
                }
            )


if __name__ == "__main__":
    main()
