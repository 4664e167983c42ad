"""The network in the package."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fer_lightning import load_model
from fer_lightning.cli import cli
from fer_lightning.data.table import FER_CLASSES
from fer_lightning.inference import modelfile, zoo


def test_default_model_is_small_and_says_how_it_was_made() -> None:
    path = zoo.find(zoo.DEFAULT)
    description, _ = modelfile.read(path)
    assert path.stat().st_size <= 3e6
    assert tuple(description.classes) == FER_CLASSES and description.protocol["name"] == "kaggle"
    assert description.scores["test/accuracy"] > 0.7
    card = path.with_suffix(".md").read_text()
    for member in description.members:
        for overrides in (member.overrides, *member.teachers.values()):
            assert f"python train.py {shlex.join(overrides)}" in card
    assert "license: mit" in card and "1,851 images repeat another one" in card


def test_models_are_listed_with_their_scores() -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["models"])
    description, _ = modelfile.read(zoo.find(zoo.DEFAULT))
    assert result.exit_code == 0
    (row,) = (line for line in result.output.splitlines() if zoo.DEFAULT in line)
    for name in ("test/accuracy", "test/f1_macro", "test/clean/accuracy"):
        assert f"{description.scores[name]:.3f}" in row


@pytest.mark.real_data
def test_faces_of_fer2013_are_predicted_as_the_scores_promise(fer2013_dir: Path) -> None:
    from fer_lightning.data.readers import sources

    faces = sources.load(fer2013_dir / "fer2013.csv.gz")
    rows = faces.rows("private")[::12]
    answers = load_model(zoo.DEFAULT).probabilities(faces.images[rows]).argmax(1)
    assert np.mean(answers == faces.labels[rows]) > 0.6


@pytest.mark.slow
@pytest.mark.real_data
def test_scores_are_those_in_the_file(fer2013_dir: Path, tmp_path: Path) -> None:
    from fer_lightning.inference.evaluate import evaluate

    metrics = evaluate(zoo.DEFAULT, data=fer2013_dir / "fer2013.csv.gz", out=tmp_path)
    description, _ = modelfile.read(zoo.find(zoo.DEFAULT))
    assert len(description.scores) > 20
    for name, value in description.scores.items():
        assert metrics[name] == pytest.approx(value, abs=1e-3), name
