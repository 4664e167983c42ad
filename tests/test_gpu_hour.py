"""The scripts of benchmarks/gpu, at toy size on the CPU."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fer_lightning.comparison.write import compare_runs
from fer_lightning.data.readers import sources

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"

TOY = ("accelerator=cpu", "precision=fp32", "model.width=8", "trainer.max_epochs=2", "data.batch_size=16")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV as the challenge's, its rows in no order of split: 140 training images, 42 of each test split."""
    path, rng = tmp_path_factory.mktemp("faces") / "fer2013.csv", np.random.default_rng(0)
    rows = [
        (usage, i % 7) for usage, n in (("Training", 140), ("PublicTest", 42), ("PrivateTest", 42)) for i in range(n)
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for i in rng.permutation(len(rows)):
            usage, label = rows[i]
            writer.writerow([label, " ".join(map(str, rng.integers(0, 256, 48 * 48))), usage])
    return path


def call(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GPU / script), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_pack_holds_every_face(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GPU))
    import pack

    pack.pack(str(faces), tmp_path / "pack")
    pack.unpack(tmp_path / "pack", tmp_path / "again.csv")
    before, after = sources.load(faces), sources.load(tmp_path / "again.csv")
    for split in ("train", "public", "private"):
        np.testing.assert_array_equal(after.images[after.rows(split)], before.images[before.rows(split)])
        np.testing.assert_array_equal(after.labels[after.rows(split)], before.labels[before.rows(split)])
    (tmp_path / "pack/0.jp2").write_bytes((tmp_path / "pack/1.jp2").read_bytes())
    with pytest.raises(SystemExit, match="other pixels"):
        pack.unpack(tmp_path / "pack", tmp_path / "again.csv")


@pytest.mark.slow
def test_networks_are_trained_scored_and_sent_in_parts(faces: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(faces), "--work", str(tmp_path / "work"), "--seeds", "0", "1", "--overrides", *TOY]
    call("networks.py", *arguments, OUT=str(tmp_path / "out"))
    results = json.loads((tmp_path / "out/networks.json").read_text())
    assert sorted(results["runs"]) == ["seed 0", "seed 1"]
    assert 1 <= int((tmp_path / "work/epochs").read_text()) <= 120
    for seed in (0, 1):
        assert results["runs"][f"seed {seed}"]["images_per_second"] > 0
    assert results["parts"].keys() == {"seed 1"} and (tmp_path / "out/strong-seed1.safetensors").exists()
    assert not (tmp_path / "out/strong-seed0.safetensors").exists()  # few files come back
    assert 0 <= results["together"]["test/accuracy"] <= 1
    began = (tmp_path / "work/seed0/metrics.json").stat().st_mtime_ns
    call("networks.py", *arguments, "--send", "0", OUT=str(tmp_path / "again"))  # goes on, and does not train again
    assert (tmp_path / "work/seed0/metrics.json").stat().st_mtime_ns == began
    assert (tmp_path / "again/strong-seed0.safetensors").exists()


@pytest.mark.slow
def test_a_study_that_is_cut_off_is_resumed(faces: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(faces), "--work", str(tmp_path / "work"), "--overrides", *TOY]
    call("study.py", *arguments, "--minutes", "2", OUT=str(tmp_path / "out"))
    first = json.loads((tmp_path / "out/study.json").read_text())
    assert not first["complete"]
    call("study.py", *arguments, "--minutes", "30", OUT=str(tmp_path / "out"))
    second = json.loads((tmp_path / "out/study.json").read_text())
    assert second["complete"]
    assert second["finished"] == 42
    assert list((tmp_path / "out").glob("*.csv"))
    shutil.unpack_archive(tmp_path / "out/study.tar.gz", tmp_path / "back", filter="data")
    compare_runs([tmp_path / "back"], out=tmp_path / "comparison")


@pytest.mark.slow
def test_checks_resume_and_score_a_run(faces: Path, tmp_path: Path) -> None:
    short = [*TOY[:3], "trainer.max_epochs=40", "data.batch_size=4", "trainer.progress_bar=false"]
    call("checks.py", "--data", str(faces), "--work", str(tmp_path / "work"), "--overrides", *short, OUT=str(tmp_path))
    results = json.loads((tmp_path / "checks.json").read_text())
    assert set(results["checks"].values()) == {"passed"}, results
    assert results["checks"].keys() == {"tests", "resume", "resume-deterministic", "one-rank"}
    resumed = json.loads((tmp_path / "work/deterministic/resume.json").read_text())
    assert resumed["whole and resumed"]["predictions"] == 0
    assert results["ranks"].keys() == {"one"}
    assert " skipped" in results["tests"][0] or " passed" in results["tests"][0]


def test_a_large_file_is_sent_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GPU))
    import common

    monkeypatch.setattr(common, "PART", 1000)
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(2500))
    (tmp_path / "out").mkdir()
    *names, digest = common.in_parts(file, tmp_path / "out")
    assert b"".join((tmp_path / "out" / name).read_bytes() for name in names) == file.read_bytes()
    assert names == ["weights.00", "weights.01", "weights.02"]
    assert digest.startswith("sha256 ")
