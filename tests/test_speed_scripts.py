"""The scripts of benchmarks/speed: what they share, the page, and short runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.data.conftest import csv_bytes, fer_rows

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SPEED))
    import measure

    return measure


def script(name: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, str(SPEED / f"{name}.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True,
    )  # fmt: skip


def test_measurements_take_turns_and_another_one_begins_each_round(measure: ModuleType) -> None:
    order: list[str] = []

    def of(name: str) -> Any:
        return lambda: order.append(name) or len(order)

    results = measure.take_turns({name: of(name) for name in "abc"}, 3)
    assert order == list("abcbcacab")
    assert results == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_ratios_are_taken_within_rounds(measure: ModuleType) -> None:
    assert measure.ratio([1, 10, 3], [2, 10, 3]) == {
        "ratio": 1.0, "lowest": 0.5, "highest": 1.0, "ratios": [0.5, 1.0, 1.0],
    }  # fmt: skip


def test_results_name_no_folder_of_the_machine(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "faces.csv"
    data.touch()
    out = tmp_path / "results/loop.json"
    arguments = ["--out", str(out), "--data", str(data), f"data.path={data}", "precision=fp32"]
    monkeypatch.setattr(sys, "argv", [str(SPEED / "loop.py"), *arguments])
    results = measure.Results(out, note="x")
    results.add({"ratio": 1.0})
    found = json.loads(out.read_text())
    assert found["command"] == ("python benchmarks/speed/loop.py --data faces.csv data.path=faces.csv precision=fp32")
    assert found["rows"] == [{"ratio": 1.0}] and found["note"] == "x"
    assert found["machine"]["cores"] == os.cpu_count()
    assert str(tmp_path) not in out.read_text()


def test_the_page_has_a_table_for_each_result(tmp_path: Path) -> None:
    folder = tmp_path / "performance"
    folder.mkdir()
    machine = {
        "processor": "A CPU", "gpu": None, "cores": 2, "threads": 1, "native bf16": False, "torch": "2.13.0",
    }  # fmt: skip
    growth = [
        {"part": part, "images": n, "seconds": seconds, "memory_mib": n}
        for n, seconds in ((1000, 1.0), (10_000, 3.7), (20_000, 6.7))
        for part in ("reading", "scores")
    ]
    near = [
        {"part": "near-duplicates", "images": n, "seconds": n / 1000, "memory_mib": 9, "pairs": n // 10,
         "found_of_all": found}
        for n, found in ((2000, 0.995), (20_000, None))
    ]  # fmt: skip
    near.append({"part": "all pairs", "images": 2000, "seconds": 4.0, "memory_mib": 9, "pairs": 201, "found_of_all": 1})
    runs = [
        {"experiment": "speed_65", "seed": seed, "accuracy": 0.65, "f1_macro": 0.6, "seconds": 900.0,
         "images_per_second": 400.0, "precision": "32-true", "commit": "abc",
         "curve": [[10.0, 0.3], [20.0, 0.5 + seed / 10]]}
        for seed in (0, 1)
    ]  # fmt: skip
    for name, rows in (("growth", growth), ("growth-near", near), ("to_accuracy", runs)):
        content = {
            "benchmark": name.removesuffix("-near"),
            "command": f"python {name}.py",
            "commit": "abc",
            "machine": machine,
            "rows": rows,
        }
        (folder / f"{name}-cpu.json").write_text(json.dumps(content))
    script("page", str(folder))
    page = (tmp_path / "performance.md").read_text()
    assert "| reading | 1.0000 | 0.3700 | 0.3350 |" in page
    assert "| ms per further image | 1,000 to 10,000 | 10,000 to 20,000 | last / first to double |" in page
    assert "| reading | 0.3000 | 0.3000 | 1.00 |" in page
    assert "| reading | 1,000 | 10,000 | 20,000 |" in page
    assert "| all pairs | 2.0000 |  |" in page
    assert "| near-duplicates | 2,000 | 200 | 0.9950 |\n| near-duplicates | 20,000 | 2,000 |  |" in page
    assert "| speed_65 | 1 | 0.6500 | 0.6000 | 15.0 | 400 | 32-true | abc |" in page
    assert "`python growth.py`, commit abc: A CPU, 1 of 2 cores, without native bf16, torch 2.13.0." in page
    assert "`python benchmarks/speed/sweeps.py`: not yet run." in page
    assert "`python benchmarks/gpu/speed.py`: not yet run." in page
    assert (folder / "growth.png").stat().st_size > 10_000 and (folder / "to_accuracy.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_loop_is_compared_with_a_bare_one(tmp_path: Path) -> None:
    out = tmp_path / "loop.json"
    tiny = ["model.width=8", "data.batch_size=16", "data.eval_batch_size=16", "precision=fp32"]
    script("loop", "--cases", "laptop", "validation", "--rounds", "1", "--steps", "3", "--out", str(out), *tiny)
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"] for row in rows] == ["laptop", "validation"]
    assert all(0.1 < row["ratio"] < 3 for row in rows)


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_the_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tiny = ["precision=fp32", "model.width=8", "data.batch_size=16", "data.eval_batch_size=64"]
    options = ["--data", "none.csv", "--work", str(tmp_path / "work"), "--out", str(out), "--only", "limits", "loop"]
    script("../gpu/speed", *options, "--batches", "4", "--steps", "1", "--overrides", *tiny)
    assert "loop: done" in (out / "speed.log").read_text()
    assert len(json.loads((out / "loop-gpu.json").read_text())["rows"]) == 5
    assert json.loads((out / "speed-gpu.json").read_text())["rows"][0]["share"] > 0


@pytest.mark.slow
def test_starts_of_a_peer_and_of_this_project_are_timed(measure: ModuleType, tmp_path: Path) -> None:
    import peers

    (tmp_path / "dataset.py").write_text("def get_dataloaders(path, bs):\n    return [[path], [], []]\n")
    faces = tmp_path / "fer2013.csv"
    faces.write_bytes(csv_bytes(fer_rows(700)))
    seconds = peers.start("lethesec", tmp_path, faces)
    assert set(seconds) == {"peer", "ours, first", "ours, cached", "peer reads", "ours reads"}
    assert all(value >= 0 for value in seconds.values())


def test_all_measurements_name_what_is_missing(measure: ModuleType, tmp_path: Path) -> None:
    import importlib
    from argparse import Namespace

    everything = importlib.import_module("all")
    arguments = Namespace(data=tmp_path / "fer2013.csv", zip=tmp_path, peers=tmp_path, work=tmp_path)
    absent = everything.missing(arguments)
    assert absent[:2] == [str(tmp_path / "fer2013.csv"), str(tmp_path / "lethesec")]
    assert {"loop", "growth", "peers"} <= set(everything.parts(arguments))


@pytest.mark.slow
@pytest.mark.real_data
def test_growth_measures_every_part(tmp_path: Path, fer2013_dir: Path) -> None:
    out = tmp_path / "growth.json"
    data = str(fer2013_dir / "fer2013.csv.gz")
    script("growth", "--data", data, "--sizes", "600", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert {"first read", "scores", "epoch"} <= {row["part"] for row in rows}
    assert all(row["seconds"] > 0 and row["memory_mib"] > 10 for row in rows)
    assert json.loads(out.read_text())["streamed"][0]["trained"] == 540


@pytest.mark.slow
def test_sweeps_are_divided_into_training_and_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "sweeps.json"
    tiny = ["data.synthetic.n_train=140", "data.synthetic.n_test=40", "model.width=8", "trainer.max_epochs=1"]
    script("sweeps", "--jobs", "2", "--few", "2", "--rounds", "1", "--out", str(out), *tiny)
    rows = json.loads(out.read_text())["rows"]
    assert [row["launcher"] for row in rows] == ["basic", "basic", "joblib"]
    assert all(0 < row["share_not_training"] < 1 for row in rows[:2])
    assert rows[2]["faster_than_basic"] > 0


@pytest.mark.slow
def test_options_and_reading_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "options.json"
    script("options", "--rounds", "1", "--steps", "2", "--out", str(out), "model.width=8", "data.batch_size=16")
    rows = {row["variant"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["default"]["ratio"] == 1 and {"channels first", "optimizer not fused"} <= set(rows)
    assert not any(row.get("failed") for name, row in rows.items() if name != "compiled")  # which needs a compiler
    faces = tmp_path / "fer2013.csv"
    faces.write_bytes(csv_bytes(fer_rows(40)))
    out, other = tmp_path / "reading.json", tmp_path / "other"
    other.mkdir()
    (other / "fer_lightning").symlink_to(SPEED.parents[1] / "fer_lightning")
    commit = "git init -q && git -c user.name=a -c user.email=a@b commit -qm a --allow-empty"
    subprocess.run(commit, cwd=other, shell=True, check=True)
    script("reading", str(faces), "--rounds", "2", "--against", str(other), "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [row["read"].partition(",")[0] for row in rows] == ["first", "first", "cached", "cached"]
    assert all(row["best"] > 0 and row["cpu"] > 0 for row in rows) and {rows[1]["ratio"], rows[3]["ratio"]} == {1.0}


@pytest.mark.slow
def test_time_to_accuracy_has_a_curve_that_ends_with_the_test(tmp_path: Path) -> None:
    out, faces = tmp_path / "out.json", tmp_path / "fer2013.csv"
    faces.write_bytes(csv_bytes(fer_rows(700)))
    tiny = ["model.width=4", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "augment.first_side=null"]
    options = ["--data", str(faces), "--runs", str(tmp_path / "runs"), "--seeds", "0", "--out", str(out)]
    script("to_accuracy", "speed_65", *options, *tiny)
    content = json.loads(out.read_text())
    (row,) = content["rows"]
    seconds = [point[0] for point in row["curve"]]
    assert len(seconds) == 3 and seconds == sorted(seconds) and row["curve"][-1] == [row["seconds"], row["accuracy"]]
    assert content["summary"][0]["target"] == 0.65
