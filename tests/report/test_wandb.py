"""What a run sends to Weights & Biases, read back from its offline files."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fer_lightning.data.table import FER_CLASSES
from fer_lightning.report import tracking
from fer_lightning.runs.folder import load_settings
from tests.conftest import SMALL, TINY, Run
from tests.processes import apart
from tests.resuming import ending, resumed, without

Train = Callable[..., Run]

BLOCK, HEADER = 32768, 7


def records(run_dir: Path) -> list[Any]:
    """The records of a run, once its process, which writes on after the run has ended, has written the last one."""
    for _ in range(150):
        found = list(_written(run_dir))
        if any(record.HasField("exit") for record in found):
            break
        time.sleep(0.2)
    return found


def _written(run_dir: Path) -> Iterator[Any]:
    """LevelDB's log format after a header of seven bytes, protobuf inside."""
    from wandb.proto import wandb_internal_pb2

    (path,) = run_dir.glob("wandb/*run-[0-9]*/run-*.wandb")
    content, at, pending = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        pending += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # full, or last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


@pytest.fixture
def run(train: Train) -> Run:
    return train(*TINY, "imbalance=balanced", "logger=all", "logger.wandb.log_checkpoint=true")


def test_wandb_receives_scalars_tables_images_config_and_checkpoint(run: Run) -> None:
    assert run.code == 0, run.err
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    artifacts = []
    for record in records(run.folder):
        if record.HasField("history"):
            history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
        for item in [*record.config.update, *record.run.config.update]:
            config[item.key] = json.loads(item.value_json)
        for item in record.summary.update:
            summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("artifact"):
            artifacts.append(record.artifact)
        elif record.request.HasField("log_artifact"):
            artifacts.append(record.request.log_artifact.artifact)

    epochs = [row for row in history if "val/recall/disgust" in row]
    rows = pd.read_csv(run.folder / "metrics.csv")
    assert [row["val/f1_macro"] for row in epochs] == pytest.approx(rows["val/f1_macro"].tolist())
    assert all(f"val/f1/{name}" in row for row in epochs for name in FER_CLASSES)
    assert config["imbalance"]["resample"]["factors"]["disgust"] == 6
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert summary["test/f1_macro"] == pytest.approx(metrics["test/f1_macro"])

    media = run.folder / next(run.folder.glob("wandb/offline-run-*")) / "files/media"
    tables = {path.name.partition("_table")[0]: json.loads(path.read_text()) for path in media.rglob("*.table.json")}
    by_columns = {tuple(table["columns"]): table["data"] for table in tables.values()}
    matrix = pd.read_csv(run.folder / "report/confusion_matrix.csv", index_col=0)
    all_data = [json.loads(p.read_text()) for p in media.rglob("*confusion_matrix*.table.json")]
    assert len(all_data) == 2
    sums = sorted(sum(row[2] for row in table["data"]) for table in all_data)
    assert sums == [40, 60]
    assert all(len(table["data"]) == 49 for table in all_data)
    test_matrix = next(t["data"] for t in all_data if sum(row[2] for row in t["data"]) == 60)
    assert {(a, p): n for a, p, n in test_matrix} == {
        (a, p): matrix.loc[a, p] for a in FER_CLASSES for p in FER_CLASSES
    }
    assert ("class", "before", "after") in by_columns
    assert any("precision" in columns for columns in by_columns)
    assert len(list(media.rglob("*mistakes*.png"))) > 0
    assert any(path.endswith("best.ckpt") for a in artifacts for path in (e.path for e in a.manifest.contents))


def test_logger_all_adds_csv_and_tensorboard(run: Run) -> None:
    assert (run.folder / "csv/metrics.csv").exists()
    assert list(run.folder.glob("tensorboard/events.out.tfevents.*"))


def test_wandb_without_api_key_logs_offline_at_once_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb  # noqa: F401 (is not on the clock)

    monkeypatch.delenv("WANDB_MODE", raising=False)
    started = time.perf_counter()
    logger = tracking.wandb_logger("p", str(tmp_path))
    assert time.perf_counter() - started < 10
    assert logger._wandb_init["mode"] == "offline"
    assert [r.message for r in caplog.records if "no API key" in r.message]
    assert len(caplog.records) == 1


def test_wandb_without_network_logs_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server
    assert tracking.wandb_logger("p", str(tmp_path))._wandb_init["mode"] == "offline"
    assert "127.0.0.1 does not answer" in caplog.text


def test_wandbs_own_settings_name_the_server(tmp_path: Path) -> None:
    """As `wandb login --host` leaves them."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {'0' * 40}\n")
    places = {"WANDB_CONFIG_DIR": f"{tmp_path}/config", "NETRC": f"{tmp_path}/netrc", "HOME": str(tmp_path)}
    asked = "from fer_lightning.report.tracking import _why_offline; print(_why_offline())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | places
    ended = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "because 127.0.0.1 does not answer\n", ended.stderr


@pytest.mark.slow
def test_one_job_of_a_sweep_is_resumed_with_the_names_of_its_first_start(tmp_path: Path) -> None:
    sweep = [f"hydra.sweep.dir={tmp_path}/2026-01-01/12-00-00", "logger=wandb", "trainer.max_epochs=1"]
    end = ending("on_test_start", 1, "SIGTERM", tmp_path / "once")
    ended = apart(tmp_path, "-m", *without(SMALL, "logger"), *sweep, *end, "seed=0,1", "imbalance=none,weighted")
    assert ended.code == 143, ended.err
    job = tmp_path / "2026-01-01/12-00-00/0"
    names = [load_settings(job)["logger"]["wandb"][key] for key in ("group", "name", "tags")]
    assert names[0] == "imbalance=none (2026-01-01/12-00-00)"
    again = apart(tmp_path, *resumed(job))
    assert again.code == 0, again.err
    assert [load_settings(job)["logger"]["wandb"][key] for key in ("group", "name", "tags")] == names


def test_run_id_is_stored_in_the_run_folder(tmp_path: Path) -> None:
    first, second = (tracking.wandb_logger("p", str(tmp_path), mode="offline")._wandb_init["id"] for _ in range(2))
    assert first == second
    with pytest.raises(ValueError, match="mode must be"):
        tracking.wandb_logger("p", str(tmp_path), mode="off")  # type: ignore[arg-type]


@pytest.mark.slow
def test_runs_of_a_sweep_are_grouped_by_setting_and_tagged(tmp_path: Path) -> None:
    sweep = [f"hydra.sweep.dir={tmp_path}/2026-01-01/12-00-00", "logger=wandb", "trainer.max_epochs=1"]
    ended = apart(tmp_path, "-m", *without(SMALL, "logger"), *sweep, "seed=0,1", "imbalance=none,weighted")
    assert ended.code == 0, ended.err
    found = {}
    for job in (tmp_path / "2026-01-01/12-00-00").glob("[0-9]"):
        (sent,) = [record.run for record in records(job) if record.HasField("run")][:1]
        found[job.name] = (sent.run_group, sent.display_name, list(sent.tags))
    own = "sweep=2026-01-01/12-00-00"
    assert found == {
        str(number): (
            f"imbalance={name} (2026-01-01/12-00-00)",
            f"imbalance={name}, seed={seed}",
            [f"imbalance={name}", f"seed={seed}", own],
        )
        for number, (seed, name) in enumerate(product((0, 1), ("none", "weighted")))
    }
