"""Cleaning: training images with planted faults are removed or relabelled, everything else stays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from fer_lightning.audit.write import audit
from fer_lightning.data.ferplus import VOTES
from fer_lightning.data.protocols import Partition, partition
from fer_lightning.data.quality import blank
from fer_lightning.data.quality.cleaning import drop, relabel
from fer_lightning.data.quality.duplicates import near_duplicates
from fer_lightning.data.readers.sources import load
from fer_lightning.data.synthetic import synthetic
from fer_lightning.data.table import FER_CLASSES, UNLABELLED, FaceTable
from fer_lightning.errors import UserError
from fer_lightning.inference.evaluate import evaluate
from tests.conftest import TINY, Run
from tests.data.conftest import csv_bytes, pixel_text

Train = Callable[..., Run]


@pytest.fixture(scope="module")
def faces() -> FaceTable:
    """Drawn faces; of the training images, by row: 11 duplicates 10, 13 duplicates 12 with another label, 15 duplicates
    the first test image, 17 is blank, 19 is a darker 18, 21 is a darker validation image, 23 is a bar on white."""
    drawn = synthetic(n_train=140, n_val=40, n_test=60)
    images, labels = drawn.images.copy(), drawn.labels.copy()
    assert drawn.split[:24].max() == 0
    for copy, of in ((11, 10), (13, 12)):
        images[copy], labels[copy] = images[of], labels[of]
    labels[13] = (labels[12] + 1) % 7
    images[15] = images[drawn.rows("private", "test")[0]]
    images[17] = 30
    images[23] = 250
    images[23, 20:24, 6:42] = 30
    for copy, of in ((19, 18), (21, drawn.rows("public", "val")[0])):
        images[copy] = (0.7 * images[of]).astype(np.uint8)
    return replace(drawn, images=images, labels=labels)


def left_out(faces: FaceTable, faults: list[str], cache: Path) -> tuple[list[int], str]:
    parts = partition(faces)
    cleaned, words = drop(faces, parts, faults, cache)
    assert np.array_equal(cleaned.val, parts.val) and np.array_equal(cleaned.test, parts.test)
    assert np.array_equal(cleaned.clean, parts.clean)
    return np.setdiff1d(parts.train, cleaned.train).tolist(), words


@pytest.mark.parametrize(
    ("faults", "rows"),
    [
        (["duplicates", "conflicts"], [11, 12, 13]),
        (["duplicates"], [11, 13]),
        (["near_duplicates"], [11, 13, 19]),
        (["conflicts"], [12, 13]),
        (["leaks"], [15]),
        (["blank"], [17]),
        (["near_blank"], [23]),
        (["blank", "conflicts", "duplicates"], [11, 12, 13, 17]),
        ([], []),
    ],
)
def test_drop_removes_images_with_named_faults(
    faces: FaceTable, tmp_path: Path, faults: list[str], rows: list[int]
) -> None:
    assert left_out(faces, faults, tmp_path)[0] == rows


def test_near_duplicates_leak_only_with_twins_near(faces: FaceTable, tmp_path: Path) -> None:
    near = replace(faces, near=near_duplicates(faces, tmp_path)[0])
    assert left_out(near, ["leaks"], tmp_path)[0] == [15, 21]
    assert not partition(near, "report").clean[faces.rows("public")[0]]


def test_image_with_two_faults_counts_once(faces: FaceTable, tmp_path: Path) -> None:
    words = left_out(faces, ["duplicates", "near_duplicates", "conflicts"], tmp_path)[1]
    assert words == "left out of training: conflicts 2, duplicates 1, near duplicates 1"


def test_nonface_needs_votes_and_a_majority(faces: FaceTable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.votes=fer2013new\.csv"):
        left_out(faces, ["nonface"], tmp_path)
    votes = np.zeros((len(faces), 10), dtype=np.uint8)
    votes[:, 0] = 10
    votes[5] = [5, 0, 0, 0, 0, 0, 0, 0, 0, 5]
    votes[6] = [4, 0, 0, 0, 0, 0, 0, 0, 0, 6]
    assert left_out(replace(faces, votes=votes), ["nonface"], tmp_path)[0] == [6]


def test_class_without_training_images_is_an_error(faces: FaceTable, tmp_path: Path) -> None:
    images = faces.images.copy()
    images[faces.labels == 1] = 7
    with pytest.raises(UserError, match=r"no training image of disgust; data\.drop=\[blank\] leaves none"):
        left_out(replace(faces, images=images), ["blank"], tmp_path)


def relabelled(
    faces: FaceTable, path: Path, text: str, merge: dict[str, str] | None = None
) -> tuple[FaceTable, Partition, str]:
    path.write_text(text, encoding="utf-8")
    after, parts, words, _ = relabel(faces, partition(faces), str(path), merge or {})
    return after, parts, words


def name(faces: FaceTable, row: int) -> str:
    return faces.ids[row].decode()


def test_relabel_changes_only_training_images(faces: FaceTable, tmp_path: Path) -> None:
    test = int(faces.rows("private", "test")[0])
    other = [FER_CLASSES[(faces.labels[row] + 1) % 7] for row in (0, 1, test)]
    text = f"\ufeffimage,fault,new_label\n{name(faces, 0)},x,{other[0]}\n{name(faces, 1)},x,{other[1]}\n"
    text += f"{name(faces, 2)},x,none\n{name(faces, test)},x,{other[2]}\n{name(faces, 0)},y,{other[0]}\n"
    text += f"{name(faces, 0)},z,\n{name(faces, 3)},z,\nlost.png,broken,\n"
    after, parts, words = relabelled(faces, tmp_path / "fixed.csv", text)
    assert words == "2 training images relabelled, 1 left out; 1 validation or test images keep their labels"
    changed = np.flatnonzero(after.labels != faces.labels).tolist()
    assert changed == [0, 1, 2]
    assert [FER_CLASSES[after.labels[row]] for row in (0, 1)] == other[:2]
    assert after.labels[2] == UNLABELLED
    assert np.setdiff1d(partition(faces).train, parts.train).tolist() == [2]


def test_relabel_adds_unlabelled_image_to_training_set(faces: FaceTable, tmp_path: Path) -> None:
    labels = faces.labels.copy()
    labels[5] = UNLABELLED
    some = replace(faces, labels=labels)
    after, parts, words = relabelled(some, tmp_path / "fixed.csv", f"image,new_label\n{name(faces, 5)},sad\n")
    assert words.startswith("1 training images relabelled")
    assert 5 in parts.train
    assert FER_CLASSES[after.labels[5]] == "sad"


def test_relabel_applies_to_duplicates(faces: FaceTable, tmp_path: Path) -> None:
    new = FER_CLASSES[(faces.labels[12] + 3) % 7]  # neither that of 12 nor that of 13
    after, parts, words = relabelled(faces, tmp_path / "fixed.csv", f"image,new_label\n{name(faces, 13)},{new}\n")
    assert words == "2 training images relabelled, 0 left out"
    assert [FER_CLASSES[after.labels[row]] for row in (12, 13)] == [new, new]
    cleaned, _ = drop(after, parts, ["conflicts", "duplicates"], tmp_path)
    assert 12 in cleaned.train and 13 not in cleaned.train
    after, parts, words = relabelled(faces, tmp_path / "fixed.csv", f"image,new_label\n{name(faces, 12)},none\n")
    assert words == "0 training images relabelled, 1 left out"
    assert 13 in parts.train and 12 not in parts.train
    with pytest.raises(UserError, match=r"line 3: .* is a duplicate of the image of line 2, but has another label"):
        relabelled(faces, tmp_path / "x.csv", f"image,new_label\n{name(faces, 12)},sad\n{name(faces, 13)},fear\n")


def test_drop_keeps_relabelled_near_duplicate(faces: FaceTable, tmp_path: Path) -> None:
    parts = partition(faces)
    kept = drop(faces, parts, ["near_duplicates"], tmp_path, given=np.array([19]))[0].train
    assert np.setdiff1d(parts.train, kept).tolist() == [11, 13, 18]
    (tmp_path / "fixed.csv").write_text(f"image,new_label\n{name(faces, 19)},{FER_CLASSES[faces.labels[19]]}\n")
    given = relabel(faces, parts, str(tmp_path / "fixed.csv"), {}).given
    assert given.tolist() == [19]  # a label that was right already is a person's now, too


def test_relabel_checks_pixel_digest(faces: FaceTable, tmp_path: Path) -> None:
    pixels = faces.pixel_digests(np.arange(3))
    text = f"image,new_label,pixel_digest\n{name(faces, 0)},none,{pixels[0]}\n{name(faces, 1)},none,\n"
    assert relabelled(faces, tmp_path / "fixed.csv", text)[2].endswith("2 left out")
    with pytest.raises(UserError, match=r"line 4: .* has other pixels than its digest, so the data has changed"):
        relabelled(faces, tmp_path / "fixed.csv", f"{text}{name(faces, 2)},sad,{pixels[1]}\n")


@pytest.mark.parametrize("protocol", ["report", "kfold"])
def test_relabelled_duplicate_of_held_out_image_stays_out_of_training(
    faces: FaceTable, tmp_path: Path, protocol: Literal["report", "kfold"]
) -> None:
    labels = faces.labels.copy()
    labels[11] = UNLABELLED
    some = replace(faces, labels=labels)
    (tmp_path / "fixed.csv").write_text(f"image,new_label\n{name(faces, 11)},{FER_CLASSES[labels[10]]}\n")
    entered = []
    for fold in range(5):
        seed = 0 if protocol == "kfold" else fold  # the image is in one of the folds
        parts = partition(some, protocol, fold=fold, seed=seed)
        after, cleaned, words, _ = relabel(some, parts, str(tmp_path / "fixed.csv"), {})
        assert not np.isin(after.identical[cleaned.train], after.identical[cleaned.val]).any()
        entered.append(11 in cleaned.train)
        assert entered[-1] == (10 not in parts.val) == ("duplicates of held-out images" not in words)
    assert any(entered)
    if protocol == "kfold":
        assert sum(entered) == 4


def test_relabelled_leak_between_official_splits_is_trained_on(faces: FaceTable, tmp_path: Path) -> None:
    images, labels = faces.images.copy(), faces.labels.copy()
    images[5] = images[faces.rows("public")[0]]
    labels[5] = UNLABELLED
    text = f"image,new_label\n{name(faces, 5)},sad\n"
    assert 5 in relabelled(replace(faces, images=images, labels=labels), tmp_path / "fixed.csv", text)[1].train


def test_relabel_applies_merge(faces: FaceTable, tmp_path: Path) -> None:
    merge = {"disgust": "angry"}
    text = f"image,new_label\n{name(faces, 0)},disgust\n"
    after, _, _ = relabelled(faces.merged(merge), tmp_path / "fixed.csv", text, merge)
    assert after.classes[after.labels[0]] == "angry"


def test_relabel_makes_targets_one_hot(faces: FaceTable, tmp_path: Path) -> None:
    soft = replace(faces, targets=(0.5 * np.eye(7)[faces.labels] + 0.5 / 7).astype(np.float32))
    text = f"image,new_label\n{name(faces, 3)},sad\n{name(faces, 4)},none\n"
    after, parts, _ = relabelled(soft, tmp_path / "fixed.csv", text)
    assert after.targets is not None
    assert after.targets[3].tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert after.targets[4].tolist() == [0] * 7
    assert 4 not in parts.train


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,new_label\na,sad\n", "no column 'image', only picture, new_label"),
        ("image,label\na,sad\n", "no column 'new_label'"),
        ("image,new_label\nface 9999,sad\n", "line 2: .* has no image 'face 9999'"),
        ("image,new_label\n{0},sad\n{1},joy\n", "line 3: unknown class 'joy'; use angry, disgust"),
        ("image,new_label\n{0},sad\n{1},sad\n{0},happy\n", "line 4: '.*' has another label in line 2"),
        ("image,new_label\n{0}\n", "line 2: the number of values differs from the header"),
        ("image,new_label\n{0},sad,\n", "line 2: the number of values differs from the header"),
        ("", "no column 'image', only nothing"),
    ],
)
def test_invalid_relabel_files(faces: FaceTable, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        relabelled(faces, tmp_path / "fixed.csv", text.format(name(faces, 0), name(faces, 1)))


def test_clean_images_are_the_same_in_all_folds(faces: FaceTable) -> None:
    folds = [partition(faces, "kfold", folds=4, fold=fold) for fold in range(4)]
    for parts in folds[1:]:
        assert np.array_equal(parts.clean, folds[0].clean)


@pytest.fixture(scope="module")
def csv(faces: FaceTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`faces` as a CSV."""
    usage = dict(zip(("train", "public", "private"), ("Training", "PublicTest", "PrivateTest"), strict=True))
    rows: list[dict[str, object]] = []
    for split, word in usage.items():
        rows += [
            {"emotion": faces.labels[row], "pixels": pixel_text(faces.images[row]), "usage": word}
            for row in faces.rows(split)
        ]
    path = tmp_path_factory.mktemp("csv") / "fer2013.csv"
    path.write_bytes(csv_bytes(rows))
    return path


ON_CSV = [setting for setting in TINY if not setting.startswith("data.synthetic") and setting != "data=synthetic"]


def test_run_with_cleaning_reports_it_and_can_be_evaluated(train: Train, csv: Path, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.csv"
    fixed.write_text("image,new_label\nrow 0,none\n")
    options = [f"data.path={csv}", "data.drop=[near_duplicates,blank]", "data.twins=near", f"data.relabel={fixed}"]
    run = train(*ON_CSV, *options, "trainer.max_epochs=1")
    assert run.code == 0, run.err
    words = "0 training images relabelled, 1 left out; left out of training: blank 1, near duplicates 3"
    assert f"cleaned  {words}" in run.out
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["data/cleaned"] == words
    assert metrics["data/twins"] == "near"
    assert "shows the same photograph" in (run.folder / "report/index.html").read_text()
    clean = pd.read_csv(run.folder / "report/predictions.csv")["clean"]
    assert (~clean).sum() == 1  # the leak

    assert evaluate(run.folder)["test/clean/accuracy"] == metrics["test/clean/accuracy"]
    assert len(scored(run.folder, "train")) == 140 - 5
    assert (~scored(run.folder, "val")["clean"]).sum() == 1
    assert scored(run.folder, "val", twins="exact", name="val-exact")["clean"].all()
    fixed.write_text("image,new_label\nrow 1,none\n")
    with pytest.raises(UserError, match="the file has changed since this run was started"):
        evaluate(run.folder, split="train")
    again = train(*ON_CSV, *options, "trainer.max_epochs=2", f"resume={run.folder}", folder=run.folder)
    assert "data.relabel_digest: " in again.err
    with pytest.raises(UserError, match="--twins alike: use exact or near"):
        evaluate(run.folder, twins="alike")
    other = evaluate(run.folder, data=csv, split="all")
    assert np.isclose(float(other["test/clean/support/happy"]), expected_unseen(csv, "happy"))


def test_changed_data_is_rejected_on_resume_and_evaluation(train: Train, csv: Path, tmp_path: Path) -> None:
    """One image less changes the hold-out, which then has images of the training set."""
    own = tmp_path / "own.csv"
    own.write_bytes(csv.read_bytes())
    run = train(*ON_CSV, f"data.path={own}", "protocol=report", "trainer.max_epochs=1")
    assert run.code == 0, run.err
    evaluate(run.folder)
    lines = csv.read_text().splitlines(keepends=True)
    own.write_text("".join(lines[:5] + lines[6:]))
    expected = (
        "the training, validation images of .*own.csv, or their labels, are not those that this run was started with"
    )
    with pytest.raises(UserError, match=f"{expected}; .* --data"):
        evaluate(run.folder)
    metrics = evaluate(run.folder, data=own, split="all")  # nobody knows which of them are clean
    assert "test/accuracy" in metrics and not any(key.startswith("test/clean") for key in metrics)
    assert any(key.startswith("test/clean") for key in evaluate(run.folder, data=csv))  # as they were
    with pytest.raises(UserError, match=f"{expected}; .* or name a run of the data as they are"):
        audit(own, near=False, runs=[run.folder], out=tmp_path / "audit")

    (run.folder / "metrics.json").unlink()
    again = train(f"resume={run.folder}", folder=run.folder)
    assert again.code == 1
    assert re.search(f"^error: .*{expected}; restore the data, or accept .*allow_changes=true$", again.err)
    again = train(f"resume={run.folder}", "allow_changes=true", folder=run.folder)
    assert again.code == 0, again.err
    assert re.search(f"resumed nevertheless: .*{expected}", (run.folder / "train.log").read_text())
    evaluate(run.folder)
    (run.folder / "metrics.json").unlink()
    own.write_bytes(csv.read_bytes())
    assert train(f"resume={run.folder}", folder=run.folder).code == 1  # what was allowed once is not for ever


@pytest.mark.parametrize(
    ("usage", "parts"), [("Training", "training|validation|training, validation"), ("PrivateTest", "test")]
)
def test_changed_labels_are_rejected(usage: str, parts: str, train: Train, csv: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_bytes(csv.read_bytes())
    run = train(*ON_CSV, f"data.path={own}", "protocol=report", "trainer.max_epochs=1")
    assert run.code == 0, run.err
    table = pd.read_csv(own)
    row = table.index[table["Usage"] == usage][3]
    table.loc[row, "emotion"] = (table.loc[row, "emotion"] + 1) % 7
    table.to_csv(own, index=False)
    with pytest.raises(UserError, match=f"the ({parts}) images of .*own.csv, or their labels, are not those"):
        evaluate(run.folder)


def test_changed_votes_are_rejected_if_they_change_the_training_set(train: Train, csv: Path, tmp_path: Path) -> None:
    votes = pd.DataFrame(0, index=range(240), columns=["Usage", "Image name", *VOTES])
    votes["Usage"], votes["Image name"], votes["happiness"] = pd.read_csv(csv)["Usage"], "", 10
    votes.loc[4, ["happiness", "NF"]] = 0, 10
    votes.to_csv(tmp_path / "votes.csv", index=False)
    run = train(
        *ON_CSV, f"data.path={csv}", f"data.votes={tmp_path / 'votes.csv'}", "data.drop=[nonface]",
        "trainer.max_epochs=1",
    )  # fmt: skip
    assert run.code == 0, run.err
    votes.loc[5, ["happiness", "NF"]] = 0, 10
    votes.to_csv(tmp_path / "votes.csv", index=False)
    (run.folder / "metrics.json").unlink()
    again = train(f"resume={run.folder}", folder=run.folder)
    assert again.code == 1
    assert "the cleaned training images of" in again.err


def test_clean_images_of_other_data_depend_on_hold_out_of_the_run(train: Train, csv: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("".join(line for line in csv.read_text().splitlines(keepends=True) if "Test" not in line))
    run = train(*ON_CSV, f"data.path={own}", "data.twins=near", "trainer.max_epochs=1")
    assert run.code == 0, run.err
    faces = load(own)
    near = replace(faces, near=near_duplicates(faces, tmp_path)[0])
    evaluate(run.folder, data=own, split="all", out=tmp_path / "out")
    clean = pd.read_csv(tmp_path / "out/report/predictions.csv")["clean"]
    assert clean.tolist() == partition(near).clean.tolist()
    assert 0 < clean.sum() < len(faces)


def scored(folder: Path, split: str, twins: str | None = None, name: str = "") -> pd.DataFrame:
    evaluate(folder, split=split, twins=twins)
    return pd.read_csv(folder / "evaluation" / (name or split) / "report/predictions.csv")


def expected_unseen(csv: Path, label: str) -> int:
    """Images of a class without a near-duplicate in the training set."""
    table = load(csv)
    group: NDArray[np.int64] = near_duplicates(table, csv.parent)[0]
    unseen = ~np.isin(group, group[table.rows("train")])
    return int((unseen & (table.labels == FER_CLASSES.index(label))).sum())


def test_bad_options(train: Train, csv: Path) -> None:
    for option, message in (
        ("data.drop=[duplicate]", r"data.drop.*duplicate.*expected one of \[duplicates, near_duplicates"),
        ("data.twins=similar", r"data.twins: Invalid value 'similar', expected one of \[exact, near\]"),
        ("data.relabel=gone.csv", "data.relabel=.*gone.csv: No such file"),
        ("data.drop=[nonface]", "data.drop=.nonface. needs the votes of FER"),
    ):
        run = train(*ON_CSV, f"data.path={csv}", option)
        assert run.code == 1
        assert re.search(message, run.err), run.err
        assert run.err.count("\n") == 1


def test_contrast_is_the_standard_deviation_of_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blank, "_AT_ONCE", 4)
    images = np.random.default_rng(0).integers(0, 256, (10, 48, 48), np.uint8)
    assert blank.spread(images).tolist() == images.reshape(10, -1).std(1).tolist()
    assert blank.spread(images[:0]).shape == (0,)
