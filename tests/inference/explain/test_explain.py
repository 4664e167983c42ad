"""`fer-lightning explain` from the outside: its files, its page, and invalid input in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import Command

IMAGES = 60
FILES = {"index.html", "robustness.csv", "robustness.png", "sanity.csv"}


@pytest.fixture(scope="module")
def explained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an explanation."""
    pytest.importorskip("captum", reason="the extra explain is not installed")
    from fer_lightning.inference.explain.write import explain

    out = tmp_path_factory.mktemp("explained") / "new" / "folder"
    explain(run, out=out, images=0, accelerator="cpu")
    return out


class Page(HTMLParser):
    """Headings, images, links, and whether each element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def attributes(self, tag: str, name: str) -> list[Any]:
        return [attributes.get(name) for other, attributes in self.tags if other == tag]


def test_page_opens_anywhere_and_shows_every_part(explained: Path) -> None:
    text = (explained / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Robustness",
        "Mean maps",
        "Sanity test",
        "Right and wrong predictions",
    ]
    assert "script" not in {tag for tag, _ in page.tags}
    sources = page.attributes("img", "src")
    assert len(sources) > 40
    for source in sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        Image.open(BytesIO(b64decode(content))).load()
    assert {path.name for path in explained.iterdir()} == FILES
    assert set(page.attributes("a", "href")) == FILES - {"index.html"}
    assert "Stage 3: 3×3; Stage 4: 2×2" in text
    assert "With all weights random, the correlation" in text
    assert (explained / "index.html").stat().st_size < 2_000_000


def test_csv_has_the_scores_of_the_run(explained: Path, run: Path) -> None:
    table = pd.read_csv(explained / "robustness.csv")
    assert (table["images"] == IMAGES).all()
    assert list(table.columns) == [
        *("perturbation", "level", "images", "accuracy", "f1_macro"),
        *("change", "change_low", "change_high"),
    ]
    assert table["perturbation"].nunique() == 9
    metrics = json.loads((run / "metrics.json").read_text())
    neutral = table[(table["perturbation"] == "blur") & (table["level"] == 0)].iloc[0]
    for name in ("accuracy", "f1_macro"):
        assert neutral[name] == pytest.approx(metrics[f"test/{name}"], abs=1e-5)


def test_sanity_table_has_a_row_for_each_part_and_layer(explained: Path) -> None:
    table = pd.read_csv(explained / "sanity.csv")
    assert table["layer"].tolist() == ["Stage 3", "Stage 4"] * 8
    assert table["randomised"].iloc[-1] == "conv1"
    assert table["correlation"].dropna().between(-1, 1).all()
    assert table["empty"].between(0, 1).all()


def test_plot_is_an_image(explained: Path) -> None:
    plot = np.asarray(Image.open(explained / "robustness.png"))
    assert plot.shape[0] > 800 and plot.shape[1] > 1500


@pytest.mark.slow
def test_several_files_are_explained_together_on_other_data(
    model_file: Path, other_run: Path, tmp_path: Path, command: Command
) -> None:
    pytest.importorskip("captum", reason="the extra explain is not installed")
    faces, rng = tmp_path / "faces", np.random.default_rng(0)
    names = ["angry", "happy", "sad", "happy"]
    for i, name in enumerate([*(f"train/{name}" for name in names), *(f"test/{name}" for name in names)]):
        (faces / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(faces / name / f"{i}.png")
    code, err = command("explain", model_file, other_run, "--data", faces, "--out", tmp_path / "out", "--images", "3")
    assert code == 0, err
    text = (tmp_path / "out" / "index.html").read_text()
    assert "Maps are the mean over 2 networks" in text
    assert "Stage 4: 2×2 and 6×6" in text
    assert (pd.read_csv(tmp_path / "out" / "robustness.csv")["images"] == 3).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}x"], "neither a run folder or model file"),
        (["{run}", "--images", "-1"], "--images -1: use a number of images from 1, or 0 for all of them"),
        (["{run}", "--split", "public2"], "--split public2: use all, train"),
        (["{run}", "--data", "{run}x"], "does not exist"),
        (["{model}"], "a model file has no data of its own: name some with --data"),
        (["{run}", "--tta", "mirror"], "--tta mirror: use none, flip, ten_crop"),
        (["{run}", "--out", "{run}/config.yaml/x"], "cannot be written .* --out"),
        (["{run}/config.yaml"], "neither a run folder nor a .safetensors or .onnx file"),
    ],
)
def test_invalid_input_is_reported_in_one_line(
    run: Path, model_file: Path, command: Command, arguments: list[str], message: str
) -> None:
    code, err = command("explain", *(a.format(run=run, model=model_file) for a in arguments), "--accelerator", "cpu")
    assert code == 1
    [line] = err.strip().splitlines()
    assert re.match(f"error: .*{message}", line), line


def test_missing_captum_is_reported_in_one_line(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("captum", "captum.attr"):
        monkeypatch.setitem(sys.modules, name, None)
    code, err = command("explain", run, "--out", tmp_path / "out", "--images", "5", "--accelerator", "cpu")
    assert (code, err) == (1, "error: captum is not installed: pip install 'fer-lightning[explain]'\n")


def test_help_waits_for_nothing_heavy() -> None:
    code = """
import sys
from fer_lightning.cli import cli
try:
    cli(["explain", "--help"])
except SystemExit:
    pass
heavy = {"torch", "pandas", "matplotlib", "captum", "cv2", "numpy", "hydra", "lightning"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "--images" in re.sub(r"\x1b\[[0-9;]*m", "", ended.stdout)
