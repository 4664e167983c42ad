"""The real FER-2013 through the real entry point: supports, duplicates and counts as its README gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_lightning.audit.write import audit
from fer_lightning.data.protocols import partition
from fer_lightning.data.readers import sources
from fer_lightning.data.table import FER_CLASSES
from tests.conftest import Run

pytestmark = pytest.mark.real_data

PRIVATE = (491, 55, 528, 879, 594, 416, 626)
BOTH = (958, 111, 1024, 1774, 1247, 831, 1233)
TRAINING = (3995, 436, 4097, 7215, 4830, 3171, 4965)

FAST = ("model=resnet18", "model.width=8", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=none")


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests here, so that each source is parsed once."""
    return tmp_path_factory.getbasetemp() / "real-data-cache"


@pytest.mark.parametrize(
    ("name", "overrides", "supports"),
    [
        ("fer2013.csv.gz", ("protocol=kaggle", "imbalance=weighted"), PRIVATE),
        pytest.param("fer2013-folder.zip", ("protocol=report", "imbalance=balanced"), BOTH, marks=pytest.mark.slow),
    ],
)
def test_supports(
    train: Callable[..., Run],
    fer2013_dir: Path,
    cache: Path,
    name: str,
    overrides: tuple[str, ...],
    supports: tuple[int, ...],
) -> None:
    run = train(f"data.path={fer2013_dir / name}", f"data.cache_dir={cache}", *FAST, *overrides)
    assert run.code == 0, run.err
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert tuple(metrics[f"test/support/{label}"] for label in FER_CLASSES) == supports


def test_duplicates_and_counts(fer2013_dir: Path, cache: Path) -> None:
    faces = sources.load(fer2013_dir / "fer2013.csv.gz", cache_dir=cache)
    assert tuple(faces.counts(faces.rows("train"))) == TRAINING
    report = partition(faces, "report")
    leaked = ~report.clean[report.test]
    assert leaked.sum() == 568
    assert tuple(faces.counts(report.test[leaked]))[FER_CLASSES.index("surprise")] == 232
    assert tuple(faces.counts(report.test[leaked]))[FER_CLASSES.index("disgust")] == 31
    kaggle = partition(faces, "kaggle")
    assert (~kaggle.clean[kaggle.test]).sum() == 288
    assert len(faces) - faces.duplicate_groups.max() - 1 == 1851


@pytest.mark.parametrize(
    ("name", "redundant", "groups"),
    # Two pairs of the folder differ in the CSV, where one of each is among the 177 rows that were decoded from JPEG.
    [("fer2013.csv.gz", 1851, 1514), pytest.param("fer2013-folder.zip", 1853, 1516, marks=pytest.mark.slow)],
)
def test_audit(
    fer2013_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, redundant: int, groups: int
) -> None:
    monkeypatch.setenv("FER_LIGHTNING_CACHE", str(tmp_path / "cache"))
    votes = fer2013_dir / "fer2013new.csv" if name.endswith(".csv.gz") else None
    audit(fer2013_dir / name, near=False, votes=votes, out=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert tuple(summary["counts"][label]["train"] for label in FER_CLASSES) == TRAINING
    assert tuple(summary["counts"][label]["private"] for label in FER_CLASSES) == PRIVATE
    assert (summary["redundant"], summary["groups"], summary["conflict_groups"]) == (redundant, groups, 57)
    assert summary["findings"]["leak from train"] == {"train": 0, "public": 280, "private": 288, "all": 568}
    assert summary["leaked"]["surprise"] == {"images": 831, "identical": 232}
    assert summary["leaked"]["disgust"] == {"images": 111, "identical": 31}
    assert summary["findings"]["blank"]["all"] == 13
    assert summary["findings"]["near_blank"]["all"] == 39
    assert summary["findings"]["broken"]["all"] == summary["findings"]["tiny"]["all"] == 0
    if votes:
        assert summary["nonface_unanimous"] == 176
        assert summary["findings"]["disagreement"]["all"] == 8283


@pytest.mark.slow
def test_audit_of_near_duplicates(fer2013_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_LIGHTNING_CACHE", str(tmp_path / "cache"))
    audit(fer2013_dir / "fer2013.csv.gz", out=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    leaks = summary["findings"]["near_leak from train"]
    assert [280 + leaks["public"], 288 + leaks["private"]] == pytest.approx([759, 773], abs=8)
    assert summary["leaked"]["all"]["identical or near"] == 568 + leaks["all"]
