"""Benchmarks start: what they import from the package exists."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = (Path(__file__).parents[1] / "benchmarks").glob("**/*.py")
BENCHMARKS = sorted(path for path in SCRIPTS if "__main__" in path.read_text())  # the others are imported by them


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_benchmark_prints_its_help(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))  # as `python benchmarks/…` does
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    assert "usage" in capsys.readouterr().out
