"""The run folder: its paths, its lock, its record of the data."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fer_lightning.errors import UserError
from fer_lightning.runs import folder, results

SETTINGS: dict[str, Any] = {"seed": 0, "data": {"path": None}, "resume": None, "allow_changes": False}


def test_only_paths_inside_a_moved_run_folder_are_changed(tmp_path: Path) -> None:
    """`…/10/faces.csv` begins with `…/1` as a text, but not as a path."""
    old, new = tmp_path / "1", tmp_path / "2"
    paths = {
        "inside": f"{old}/checkpoints",
        "itself": str(old),
        "beside": f"{tmp_path}/10/faces.csv",
        "text": f"a{old}",
    }
    with folder.enter(old, SETTINGS | {"data": paths}):
        pass
    old.rename(new)
    moved = folder.load_settings(new)["data"]
    assert {name: moved[name] for name in paths} == paths | {"inside": f"{new}/checkpoints", "itself": str(new)}
    assert str(new) not in (new / "config.yaml").read_text()


def test_a_run_folder_is_locked_for_the_time_of_the_run(tmp_path: Path) -> None:
    busy = pytest.raises(UserError, match="another process is busy with this run")
    with folder.enter(tmp_path, SETTINGS), busy, folder.enter(tmp_path, SETTINGS):
        pass
    with folder.enter(tmp_path, SETTINGS):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_unlocked(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*args: Any) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.INFO), folder.enter(tmp_path, SETTINGS):
        assert (tmp_path / "config.yaml").is_file()
    assert f"{tmp_path}: not locked" in caplog.text
    with folder.enter(tmp_path, SETTINGS):
        pass


def test_a_run_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"file/run: Not a directory; choose another with hydra\.run\.dir"
    with pytest.raises(UserError, match=message), folder.enter(tmp_path / "file" / "run", SETTINGS):
        pass


DIGEST = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        json.dumps({"train": 1}).encode(),
        json.dumps({"train": [DIGEST]}).encode(),
        json.dumps({"train": "../../etc/passwd"}).encode(),
        json.dumps({"../train": DIGEST}).encode(),
        json.dumps({"train": DIGEST, folder.ALLOWED: "yes"}).encode(),
    ],
)
def test_a_partition_file_that_no_run_wrote_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / folder.PARTITION).write_bytes(content)
    with pytest.raises(UserError, match=r"partition\.json: damaged, or not written by a run") as error:
        folder.compare_partition(tmp_path, "faces.csv", {"train": DIGEST}, "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"test/accuracy": {}}'])
def test_a_metrics_file_that_no_run_wrote_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / folder.METRICS).write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json: damaged, or not written by a run"):
        folder.finished(tmp_path)


def test_a_partition_that_is_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.write_text("{}")
    run = tmp_path / "run"
    run.mkdir()
    (run / folder.PARTITION).symlink_to(target)
    folder.keep_partition(run, "faces.csv", {"train": DIGEST}, resumed=False)
    assert target.read_text() == "{}"
    assert json.loads((run / folder.PARTITION).read_text()) == {"train": DIGEST}


def test_resume_with_other_data_is_refused_unless_changes_are_allowed(tmp_path: Path) -> None:
    folder.keep_partition(tmp_path, "faces.csv", {"train": DIGEST, "test": DIGEST}, resumed=False)
    other = {"train": DIGEST, "test": DIGEST[::-1]}
    with pytest.raises(UserError, match=r"the test images of faces\.csv"):
        folder.keep_partition(tmp_path, "faces.csv", other, resumed=True)
    (tmp_path / "metrics.csv").touch()
    (tmp_path / folder.CONFIG).write_text(OmegaConf.to_yaml({"seed": 0, "data": {"path": None}}))
    with folder.enter(tmp_path, SETTINGS | {"resume": "auto", "allow_changes": True}):
        folder.keep_partition(tmp_path, "faces.csv", other, resumed=True)
    assert json.loads((tmp_path / folder.PARTITION).read_text()) == other


def test_the_commit_is_not_that_of_a_repository_around_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(folder: Path) -> None:
        for command in (["init"], ["-c", "user.name=a", "-c", "user.email=b", "commit", "--allow-empty", "-m", "c"]):
            subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)

    package = tmp_path / "site-packages/fer_lightning/runs"
    package.mkdir(parents=True)
    monkeypatch.setattr(results, "__file__", str(package / "results.py"))
    git(tmp_path)
    assert results.git_commit.__wrapped__() == "none"
    git(package.parents[1])
    (clean := results.git_commit.__wrapped__()).isalnum()
    assert len(clean) >= 7
    (package / "mine.py").touch()  # a strategy of one's own, say
    assert results.git_commit.__wrapped__() == f"{clean}+"
    monkeypatch.setenv("FER_LIGHTNING_COMMIT", "abc1234")
    assert results.git_commit.__wrapped__() == "abc1234"
