"""Overrides that a run folder recorded, checked before Hydra composes a config from them.

Hydra calls the targets of callbacks, launcher and sweeper, sets environment variables and reads further config folders
while it starts, before any code of this project runs. So the overrides of a folder from a stranger are checked here
against a list of what a recorded override may contain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Sweep
from hydra.errors import HydraException

from fer_lightning.config import CONF
from fer_lightning.config.instantiate import check_targets
from fer_lightning.errors import UserError

SWEPT = "hydra.sweeper.params"
"""Keys below it are keys of overrides themselves."""

HYDRA_KEYS = re.compile(
    r"hydra\.(sweeper\.(n_trials|n_jobs|direction|study_name|max_batch_size|max_failure_rate|sampler\.seed)"
    r"|launcher\.(n_jobs|timeout_min|nodes|tasks_per_node|cpus_per_task|gpus_per_node|gpus_per_task|mem_gb"
    r"|mem_per_cpu|mem_per_gpu|partition|qos|account|gres|constraint|exclude|array_parallelism|signal_delay_s"
    r"|max_num_timeout))"
)
"""Hydra's own keys that set how much to run and where, and cannot run code."""

KEY = re.compile(r"\w+(\.[\w-]+)*")
GROUP = re.compile(r"\w+(/\w+)*")
OPTION = re.compile(r"[\w-]+")
"""A file of a config group: without slashes and dots, which would leave its folder."""
WORD = re.compile(r"[\w.:,=+-]*")

WRITERS = ("callbacks", "logger")
"""Groups whose nodes write files."""
FOLDERS = re.compile(r"(dir|dirpath|path|folder|root|uri|location)$")
"""Keys whose values name where to write."""
OUTSIDE = re.compile(r"^[~/\\]|^\w:[/\\]|://|(^|[/\\])\.\.([/\\]|$)")
"""Values that lead out of whatever folder they are appended to."""


def parse(overrides: Iterable[str], where: str) -> list[Override]:
    """Overrides in Hydra's grammar, parsed.

    Raises:
        UserError: one of them is not an override.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except HydraException as error:
            reason = " ".join(str(error).split()).partition(" See http")[0]
            raise UserError(f"{where}: {text!r} is not an override ({reason}); restore the file") from error
    return parsed


def values_of(override: Override) -> Iterator[Any]:
    """Each value that an override gives its key, as plain containers; numbers of ranges are left out."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        yield from (Override._convert_value(choice) for choice in value.list)
    elif not isinstance(value, Sweep | Glob):
        yield value


def check_overrides(overrides: Sequence[Override], *, where: str, run_dir: Path, own: Iterable[str] = ()) -> None:
    """Refuse recorded overrides that could run code, or write outside of the run folder.

    Args:
        overrides: as the folder recorded them.
        where: the file that they were read from.
        run_dir: the run folder or the sweep's folder.
        own: targets that the user typed, see `check_targets`.

    Raises:
        UserError: the first such override.
    """
    for override in overrides:
        key, values = override.key_or_group, list(values_of(override))
        shown = override.input_line or key
        top, last = key.partition(".")[0], key.rpartition(".")[2]
        if override.package is not None:
            raise _refused(where, shown, "it moves a config group to another package")
        if key == SWEPT or key.startswith(f"{SWEPT}."):
            check_overrides(parse(_swept(key, values), where), where=where, run_dir=run_dir, own=own)
        elif "/" in key or (CONF / key).is_dir():
            options = [option for value in values for option in (value if isinstance(value, list) else [value])]
            if not GROUP.fullmatch(key) or not all(o is None or OPTION.fullmatch(str(o)) for o in options):
                raise _refused(where, shown, "it names no option of a config group")
        elif top == "hydra":
            plain = all(isinstance(v, int | float | None) or (isinstance(v, str) and WORD.fullmatch(v)) for v in values)
            if not HYDRA_KEYS.fullmatch(key) or not plain:
                raise _refused(where, shown, "Hydra may run code by it")
        elif not KEY.fullmatch(key):
            raise _refused(where, shown, "its key is not one that this project writes")
        else:
            for value in values:
                check_targets({last: value}, where=where, own=own)
                if top in WRITERS:
                    _check_paths({last: value}, where, run_dir)


def _swept(key: str, values: Sequence[Any]) -> Iterator[str]:
    """What a sweeper makes of `hydra.sweeper.params.<key>=<values>`, or of a dict of such: overrides."""
    for value in values:
        if key != SWEPT:
            yield f"{key.removeprefix(f'{SWEPT}.')}={value}"
        elif isinstance(value, Mapping):
            yield from (f"{name}={choices}" for name, choices in value.items())


def _check_paths(node: Any, where: str, run_dir: Path) -> None:
    """Refuse strings of a node that name a folder or file outside of the run folder."""
    for key, value in enumerate(node) if isinstance(node, list) else node.items():
        if isinstance(value, Mapping | list):
            _check_paths(value, where, run_dir)
        elif isinstance(value, str) and (FOLDERS.search(str(key)) or OUTSIDE.search(value)):
            path = Path(os.path.normpath(value))  # relative ones belong to a working directory that the folder names
            if not path.is_relative_to(run_dir.absolute()):
                raise _refused(where, f"{key}={value}", f"it is not within {run_dir}")


def _refused(where: str, override: str, reason: str) -> UserError:
    return UserError(
        f"{where}: {override}: {reason}; if you trust whoever made this folder, add trust=true, or leave it out"
    )
