"""A small data set with every fault, and the command itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from fer_lightning.data.ferplus import VOTES
from fer_lightning.data.synthetic import synthetic
from fer_lightning.data.table import FER_CLASSES, SPLITS
from tests.data.conftest import csv_bytes, image_bytes, pixel_text, write_folder
from tests.data.quality.test_duplicates import darker, mirrored, moved, watermarked

Finding = tuple[str, str, str]
USAGE = {"train": "Training", "public": "PublicTest", "private": "PrivateTest"}


@dataclass
class Face:
    """An image of the set and its planted faults, each with the name of the duplicate."""

    name: str
    pixels: NDArray[np.uint8]
    label: str
    split: str
    faults: dict[str, str]


@pytest.fixture(scope="session")
def planted() -> list[Face]:
    """280 drawn faces without a fault, then one for each fault except broken and tiny files."""
    drawn = synthetic(n_train=200, n_val=40, n_test=40, seed=4)
    named = zip(drawn.images, drawn.labels.tolist(), drawn.split.tolist(), strict=True)
    clean = [
        Face(f"{i:03}", image, FER_CLASSES[label], SPLITS[split], {}) for i, (image, label, split) in enumerate(named)
    ]
    spare = synthetic(n_train=7, n_val=0, n_test=0, seed=77).images  # faces that are not in the set otherwise
    train = [face for face in clean if face.split == "train" and face.label == "angry"]  # sorted by name, the first
    public = next(face for face in clean if face.split == "public")

    def copy(name: str, of: Face, split: str, *faults: str, change: Callable[..., NDArray[np.uint8]] = np.copy) -> Face:
        label = of.label
        if any("conflict" in fault for fault in faults):
            label = "surprise"
        return Face(name, np.ascontiguousarray(change(of.pixels)), label, split, dict.fromkeys(faults, of.name))

    def alone(name: str, pixels: NDArray[np.floating], fault: str, split: str = "train") -> Face:
        return Face(name, np.clip(pixels, 0, 255).astype(np.uint8), "happy", split, {fault: ""})

    notice = np.full((48, 48), 250.0)
    notice[20:24, 6:42:2] = 30
    faults = [
        copy("duplicate", train[0], "train", "duplicate"),
        copy("leak", train[1], "private", "leak"),
        copy("leak2", public, "private", "leak"),
        copy("conflict", train[2], "train", "duplicate", "conflict"),
        copy("leak3", train[3], "public", "leak", "conflict"),
        copy("near_duplicate", train[4], "train", "near_duplicate", change=mirrored),
        copy("near_leak", train[5], "public", "near_leak", change=moved),
        copy("near_conflict", train[6], "train", "near_duplicate", "near_conflict", change=watermarked),
        copy("near_leak2", train[7], "private", "near_leak", change=darker),
        alone("blank", np.zeros((48, 48)), "blank"),
        alone("near_blank", notice, "near_blank", "public"),
        alone("dark", (spare[0] - spare[0].mean()) * 0.7 + 5, "dark"),
        alone("bright", (spare[1] - spare[1].mean()) * 0.45 + 252, "bright", "private"),
        alone("low_contrast", (spare[2] - spare[2].mean()) * 9 / spare[2].std() + 128, "low_contrast"),
    ]
    return clean + faults


@pytest.fixture(scope="session")
def folder(planted: list[Face], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[Finding]]:
    """The set as class folders with a tiny file and four broken ones, one of them a dangling link; and the expected
    findings."""

    def path(face: Face) -> str:
        split = {"train": "train", "public": "test", "private": "test"}[face.split]
        return f"{split}/{face.label}/{USAGE[face.split]}_{face.name}.png"

    by_name = {face.name: path(face) for face in planted} | {"": ""}
    root = write_folder(tmp_path_factory.mktemp("planted"), {path(f): image_bytes(f.pixels) for f in planted})
    complete = image_bytes(planted[0].pixels)
    broken = {"train/sad/cut.png": complete[:200], "train/happy/text.jpg": b"no image", "train/fear/empty.png": b""}
    write_folder(root, broken)
    (root / "train/sad/gone.png").symlink_to(root / "nowhere.png")
    broken["train/sad/gone.png"] = b""
    small = synthetic(n_train=7, n_val=0, n_test=0, seed=78).images[1]
    Image.fromarray(small).resize((20, 30)).save(root / "train/sad/tiny.png")
    expected = {(path(f), fault, by_name[twin]) for f in planted for fault, twin in f.faults.items()}
    expected |= {(name, "broken", "") for name in broken} | {("train/sad/tiny.png", "tiny", "")}
    return root, expected


@pytest.fixture(scope="session")
def csv(planted: list[Face], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, set[Finding]]:
    """The set as a CSV, votes with a non-face and a disagreement, and the expected findings."""
    folder = tmp_path_factory.mktemp("csv")
    rows = [
        {"emotion": FER_CLASSES.index(f.label), "pixels": pixel_text(f.pixels), "usage": USAGE[f.split]}
        for f in planted
    ]
    (folder / "fer2013.csv").write_bytes(csv_bytes(rows))
    votes = pd.DataFrame(0, index=range(len(planted)), columns=list(VOTES))
    votes["happiness"] = 10
    votes.loc[8, ["happiness", "NF"]] = 0, 10
    votes.loc[9, ["happiness", "sadness"]] = 5, 5
    votes.loc[10, ["happiness", "sadness"]] = 6, 4
    usage = [USAGE[f.split] for f in planted]
    votes.assign(Usage=usage, **{"Image name": ""}).to_csv(folder / "fer2013new.csv", index=False)
    row_of = {face.name: f"row {i}" for i, face in enumerate(planted)} | {"": ""}
    expected = {(row_of[f.name], fault, row_of[twin]) for f in planted for fault, twin in f.faults.items()}
    expected |= {("row 8", "nonface", ""), ("row 9", "disagreement", "")}
    return folder / "fer2013.csv", folder / "fer2013new.csv", expected


@dataclass
class Audited:
    """How `fer-lightning audit` ended."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def findings(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "findings.csv", keep_default_na=False)

    @property
    def found(self) -> set[Finding]:
        table = self.findings[["image", "fault", "twin"]]
        assert not table.duplicated().any()
        return set(table.itertuples(index=False, name=None))


@pytest.fixture
def audit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Audited]:
    """Runs `fer-lightning audit` in this process."""

    def audit(*arguments: object) -> Audited:
        from fer_lightning.cli import app

        folder = tmp_path / "audit"
        command = ["fer-lightning", "audit", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command if "--out" in command else [*command, "--out", str(folder)])
        monkeypatch.setenv("COLUMNS", "100")
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app()
        out, err = capsys.readouterr()
        return Audited(int(end.value.code or 0), out, err, folder)

    return audit
