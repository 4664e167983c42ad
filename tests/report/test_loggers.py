"""The CSV logger of a resumed run."""

from __future__ import annotations

import csv
import errno
from pathlib import Path

import pytest

from fer_lightning.report.loggers import CSV

COMMA = "val/recall/happy, or not"


def logger(folder: Path) -> CSV:
    return CSV(str(folder), name="csv", version="", flush_logs_every_n_steps=1)


def interrupted(folder: Path) -> Path:
    """The log of a run that was killed while it wrote step 3."""
    first = logger(folder)
    for step in range(3):
        first.log_metrics({"train/loss": step / 10, COMMA: 0.5}, step)
    path = folder / "csv/metrics.csv"
    path.write_text(path.read_text() + "3,0.")
    return path


def test_resumed_log_has_every_step_once(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    second = logger(tmp_path)
    for step in range(1, 5):
        second.log_metrics({"train/loss": step / 10, COMMA: 0.5}, step)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert {row[COMMA] for row in rows} == {"0.5"}


def test_log_survives_a_failure_while_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = interrupted(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        _ = logger(tmp_path).experiment
    assert path.read_bytes() == before
