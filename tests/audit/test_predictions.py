"""`fer-lightning audit --run`: labels are judged by networks that were not trained on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fer_lightning.audit.confident import confident_learning
from fer_lightning.data.protocols import partition
from fer_lightning.data.quality.duplicates import near_duplicates
from fer_lightning.data.readers.sources import load
from fer_lightning.inference.evaluate import evaluate
from fer_lightning.report.tables import probabilities_of
from tests.audit.conftest import Audited, Finding
from tests.conftest import Run

TINY = ("protocol=kfold", "protocol.folds=2", "model=resnet18", "model.width=8", "trainer.accelerator=cpu",
        "trainer.max_epochs=1", "logger=none", "data.batch_size=32")  # fmt: skip


@pytest.mark.parametrize("folds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_labels_are_judged_by_runs_that_did_not_train_on_the_image(
    audit: Callable[..., Audited],
    train: Callable[..., Run],
    csv: tuple[Path, Path, set[Finding]],
    folds: int,
    tmp_path: Path,
) -> None:
    faces = load(csv[0])
    sums, number, options = np.zeros((len(faces), 7)), np.zeros(len(faces), dtype=int), []
    for fold in range(folds):
        run = train(f"data.path={csv[0]}", f"protocol.fold={fold}", *TINY)
        assert run.code == 0, run.err
        options += ["--run", run.folder]
        evaluate(run.folder, split="all", out=run.folder / "all", accelerator="cpu")
        p = probabilities_of(pd.read_csv(run.folder / "all/report/predictions.csv"), faces.classes)
        trained = {faces.images[row].tobytes() for row in partition(faces, "kfold", folds=2, fold=fold).train}
        unseen = np.array([image.tobytes() not in trained for image in faces.images])
        sums[unseen] += p[unseen]
        number += unseen
    covered = np.flatnonzero(number)
    assert folds == 1 or len(covered) == len(faces)

    done = audit(csv[0], "--no-near", *options)
    assert done.code == 0, done.err
    summary = json.loads((done.folder / "summary.json").read_text())
    assert [summary[k] for k in ("runs", "predicted", "not_predicted")] == [
        folds,
        len(covered),
        len(faces) - len(covered),
    ]
    assert f"{len(faces) - len(covered)} images have none" in done.out.replace("\n", " ")
    expected = confident_learning(faces.labels[covered], sums[covered] / number[covered, None])
    found = done.findings[done.findings["fault"] == "mislabelled"].set_index("image")
    assert len(found) == len(expected.rows) > 0
    for row, label, margin in zip(covered[expected.rows], expected.suggested, expected.margins, strict=True):
        assert found.at[f"row {row}", "suggested"] == faces.classes[label]
        assert float(found.at[f"row {row}", "value"]) == pytest.approx(margin, abs=1e-5)

    near, _ = near_duplicates(faces, tmp_path)
    unseen = [~np.isin(near, near[partition(faces, "kfold", folds=2, fold=fold).train]) for fold in range(folds)]
    done = audit(csv[0], *options)
    assert json.loads((done.folder / "summary.json").read_text())["predicted"] == np.any(unseen, axis=0).sum()
    assert folds == 2 or np.any(unseen, axis=0).sum() < len(covered)

    other = run.folder.parent / "other.csv"
    other.write_text("\n".join(csv[0].read_text().splitlines()[:-1]))
    refused = audit(other, *options)
    assert refused.code == 1
    assert "has images that" in refused.err
    config = (run.folder / "config.yaml").read_text()
    for before, after, named in (
        ("init_from: null", "init_from: fer2013-small", "init_from=fer2013-small"),
        ("teachers: []\n  ", "teachers: [a]\n  ", "distill.other_data=True"),
    ):
        changed = config.replace(before, after).replace("other_data: false", "other_data: true")
        assert changed != config
        (run.folder / "config.yaml").write_text(changed)
        refused = audit(csv[0], *options)
        assert refused.code == 1
        assert f"was trained with {named}, whose network may know these images" in refused.err
    (run.folder / "config.yaml").write_text(config)
    (run.folder / "metrics.json").unlink()
    refused = audit(csv[0], *options)
    assert refused.code == 1
    assert "not finished; resume it with" in refused.err
    refused = audit(csv[0], "--run", csv[0].parent)
    assert refused.code == 1
    assert "not a run folder" in refused.err
