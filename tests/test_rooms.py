"""Rooms import downwards only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fer_lightning"
NAME = PACKAGE.name

FLOORS = [
    {"app", "cli"},
    {"training", "inference", "comparison", "audit"},
    {"runs", "report", "config"},
    {"metrics", "models", "data"},
    {"errors"},
]
"""A room imports rooms of its own floor and of those below."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

DISTRIBUTED = "distributed"
"""Stands aside: a few functions for those that run several processes."""
USERS_OF_DISTRIBUTED = {"training", "app", DISTRIBUTED}

FRAMEWORKS = {"lightning", "hydra", "omegaconf"}
"""What faces and networks do without."""


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    return module.partition("/")[0].removesuffix(".py")


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, those within functions and for type checkers included."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            assert node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def rooms_imported(module: str) -> Iterator[tuple[int, str]]:
    for line, name in imports(module):
        if name.startswith(f"{NAME}.") and (room := name.split(".")[1]) != "__version__":
            yield line, room


@pytest.mark.parametrize("module", [m for m in modules() if m != "__init__.py"])
def test_rooms_import_downwards_only(module: str) -> None:
    room, wrong = room_of(module), []
    for line, other in rooms_imported(module):
        if DISTRIBUTED in (room, other):
            fits = other in (DISTRIBUTED, "errors") if room == DISTRIBUTED else room in USERS_OF_DISTRIBUTED
        else:
            fits = FLOOR[other] >= FLOOR[room]
        if not fits:
            wrong.append(f"line {line}: {other}")
    assert wrong == []


@pytest.mark.parametrize("module", [m for m in modules() if FLOOR.get(room_of(m)) == FLOOR["data"]])
def test_data_and_networks_know_no_framework(module: str) -> None:
    if module == "data/datamodule.py":  # Lightning's
        return
    wrong = [name for _, name in imports(module) if name.partition(".")[0] in FRAMEWORKS]
    wrong += [name for _, name in imports(module) if name.startswith("torch.distributed")]
    assert wrong == []


def test_root_holds_entry_points_only() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "app.py", "cli.py", "errors.py"}


def test_every_folder_is_a_known_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= {*FLOOR, DISTRIBUTED}
