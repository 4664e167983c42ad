"""FER+: labels and distributions by the published rules, votes that match their rows, and training on targets."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from fer_lightning.data import ferplus
from fer_lightning.data.loader import FaceLoader, TrainingOrder, draw_labels
from fer_lightning.data.protocols import partition
from fer_lightning.data.readers import sources
from fer_lightning.data.selection import Selection
from fer_lightning.data.synthetic import synthetic
from fer_lightning.data.table import FER_CLASSES, SPLITS, UNLABELLED, FaceTable
from fer_lightning.data.transforms.mixing import Mix
from fer_lightning.data.transforms.resampling import Resample, TrainingSet
from fer_lightning.errors import UserError
from fer_lightning.inference.evaluate import evaluate
from tests.conftest import Run
from tests.data.conftest import csv_bytes, faces, folder_files, pixel_text, write_folder
from tests.processes import apart
from tests.resuming import assert_same, ending, outcome, resumed

Train = Callable[..., Run]

NAMES = {
    "angry": "anger", "disgust": "disgust", "fear": "fear", "happy": "happiness", "sad": "sadness",
    "surprise": "surprise", "neutral": "neutral", "contempt": "contempt",
}  # fmt: skip
"""The name of each class here and in the file."""

FAST = (
    "data=ferplus", "model._target_=tests.interruptions.SmallNetwork", "model=resnet18", "data.batch_size=16",
    "trainer.accelerator=cpu", "trainer.max_epochs=1", "optimizer.lr=0.02", "logger=none",
)  # fmt: skip


def by_the_rules(votes: Sequence[int], mode: str) -> list[float] | None:
    """The published rules for one image, step by step: shares of the eight emotions in the order of the file, or None
    if it is left out."""
    counts = [n if n > 1 else 0 for n in votes]
    total = sum(counts)
    if mode == "majority":
        winner = counts.index(max(counts))
        if counts[winner] <= total / 2 or winner >= 8:
            return None
        return [float(i == winner) for i in range(8)]
    taken: dict[int, int] = {}
    while sum(taken.values()) < 0.75 * total and len(taken) < 3:
        most = max(counts)
        first_of_rest = False
        for i in [i for i in range(10) if counts[i] == most]:
            if i >= 8:
                first_of_rest = True
                break
            taken[i], counts[i] = most, 0
        if first_of_rest:
            break
    covered = sum(taken.values())
    if covered <= total / 2 or len(taken) > 3:
        return None
    return [taken.get(i, 0) / covered for i in range(8)]


def random_votes(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Ten votes per image, from unanimous to evenly spread, and images with any number of votes and many ties."""
    rng = np.random.default_rng(seed)
    shares = np.concatenate([rng.dirichlet(np.full(10, alpha), n // 4) for alpha in (0.1, 0.5, 3.0)])
    return np.concatenate([rng.multinomial(10, shares), rng.integers(0, 5, (n // 4, 10)) * 2]).astype(np.int64)


def table(votes: NDArray[np.int64], split: str = "train") -> FaceTable:
    n = len(votes)
    ids = np.array([f"row {i}".encode() for i in range(n)])
    splits = np.full(n, SPLITS.index(split), dtype=np.int8)
    labels = np.zeros(n, dtype=np.int64)
    return FaceTable(faces(n), labels, splits, ids, FER_CLASSES, "made up", "0", votes=votes.astype(np.uint8))


def expected(votes: NDArray[np.int64], mode: str) -> NDArray[np.float64]:
    """`by_the_rules` of every image in the order of classes here, 0 if it is left out."""
    columns = [ferplus.VOTES.index(NAMES[name]) for name in ferplus.CLASSES]
    rows = (by_the_rules(v, mode) for v in votes.tolist())
    return np.array([np.zeros(8) if shares is None else np.array(shares)[columns] for shares in rows])


def test_labels_and_distributions_follow_the_published_rules() -> None:
    votes = random_votes(4000)
    alone, shares = expected(votes, "majority"), expected(votes, "crossentropy")
    made = ferplus.relabelled(table(votes), "crossentropy")
    assert made.targets is not None
    np.testing.assert_allclose(made.targets, shares, rtol=1e-6)
    np.testing.assert_array_equal(made.labels, np.where(alone.any(1), alone.argmax(1), UNLABELLED))
    np.testing.assert_array_equal(ferplus.relabelled(table(votes), "majority").labels, made.labels)
    assert 0.1 < alone.any(1).mean() < shares.any(1).mean() < 0.9
    tied = (np.sort(votes, 1)[:, -1] == np.sort(votes, 1)[:, -2]) & shares.any(1)
    assert tied.sum() > 50


@pytest.mark.parametrize(
    ("votes", "shares"),
    [
        ([10, 0, 0, 0, 0, 0, 0, 0, 0, 0], {"neutral": 1}),
        ([9, 1, 0, 0, 0, 0, 0, 0, 0, 0], {"neutral": 1}),  # a single vote is an outlier
        ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], {"neutral": 0.5, "happy": 0.5}),
        ([4, 2, 2, 2, 0, 0, 0, 0, 0, 0], None),  # three emotions come second together: four in all
        ([4, 3, 3, 0, 0, 0, 0, 0, 0, 0], {"neutral": 0.4, "happy": 0.3, "surprise": 0.3}),
        ([5, 0, 0, 0, 0, 0, 0, 0, 5, 0], None),  # half of the votes, and as many unknown
        ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], {"neutral": 1}),
        ([4, 4, 0, 0, 0, 0, 0, 0, 2, 0], {"neutral": 0.5, "happy": 0.5}),
        ([2, 0, 0, 0, 0, 0, 0, 0, 0, 8], None),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None),
    ],
)
def test_distributions(votes: list[int], shares: dict[str, float] | None) -> None:
    made = ferplus.relabelled(table(np.array([votes])), "crossentropy")
    assert made.targets is not None
    assert {c: round(float(p), 6) for c, p in zip(made.classes, made.targets[0], strict=True) if p} == (shares or {})


def test_votes_are_merged_before_the_rules_apply() -> None:
    votes = np.array([[4, 0, 0, 0, 0, 3, 0, 3, 0, 0], [8, 0, 0, 0, 0, 1, 0, 1, 0, 0]])
    made = ferplus.relabelled(table(votes), "crossentropy", {"contempt": "disgust"})
    assert made.classes == FER_CLASSES
    assert made.labels.tolist() == [1, 6]
    assert made.targets is not None
    np.testing.assert_allclose(made.targets[:, [1, 6]], [[0.6, 0.4], [0, 1]], rtol=1e-6)


def test_merged_labels_and_invalid_merges() -> None:
    plain = table(random_votes(40))
    merged = plain.merged({"angry": "disgust"})
    assert merged.classes == FER_CLASSES[1:]
    assert merged.counts().tolist() == [40, 0, 0, 0, 0, 0]
    for merge, message in (
        ({"contempt": "disgust"}, "has no class 'contempt', only angry"),
        ({"fear": "joy"}, "no class 'joy'"),
        ({"fear": "sad", "sad": "neutral"}, "fear is merged into sad, which is merged itself"),
    ):
        with pytest.raises(UserError, match=f"data.merge: .*{message}"):
            plain.merged(merge)


def test_labels_of_other_data_are_merged_as_in_training() -> None:
    drawn = synthetic(n_train=14, n_val=0, n_test=0, seed=1)
    others = drawn.only([name for name in drawn.classes if name != "angry"])  # has disgust, not what it is taken for
    known = drawn.merged({"disgust": "angry"}).classes
    assert others.as_known_by(known, {"disgust": "angry"}).counts().tolist() == [
        (others.labels == others.classes.index(name)).sum() for name in ["disgust", *known[1:]]
    ]
    with pytest.raises(UserError, match="has images of disgust, but the model knows angry, fear"):
        others.as_known_by(known)


def test_distributions_are_renormalised_without_removed_classes() -> None:
    votes = np.array([[6, 0, 0, 0, 0, 0, 0, 4, 0, 0], [4, 0, 0, 0, 0, 0, 0, 6, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 9, 1]])
    made = ferplus.relabelled(table(votes), "crossentropy").only(["neutral", "happy"])
    assert made.targets is not None and made.votes is not None
    assert made.ids.tolist() == [b"row 0", b"row 2"]
    assert made.labels.tolist() == [0, UNLABELLED]
    assert made.targets.tolist() == [[1, 0], [0, 0]]
    assert made.votes.tolist() == votes[[0, 2]].tolist()
    known = made.as_known_by(ferplus.CLASSES)
    assert known.targets is not None and known.targets[0].argmax() == ferplus.CLASSES.index("neutral")


@pytest.mark.parametrize("name", ["kaggle", "report", "kfold"])
def test_validation_is_scored_by_majority_for_every_target(name: str) -> None:
    votes = random_votes(4000, seed=1)
    made = ferplus.relabelled(table(votes), "crossentropy")
    split = np.where(np.arange(4000) % 4 == 0, SPLITS.index("private"), SPLITS.index("train")).astype(np.int8)
    made = FaceTable(made.images, made.labels, split, made.ids, made.classes, "", "", targets=made.targets)
    parts = partition(made, name)  # type: ignore[arg-type]
    assert (made.training_labels[parts.train] != UNLABELLED).all()
    assert (made.labels[parts.train] == UNLABELLED).sum() > 100
    assert len(parts.val) > 100 and (made.labels[parts.val] != UNLABELLED).all()
    assert (made.labels[parts.test] == UNLABELLED).sum() > 100


def soft_training(n: int = 60) -> TrainingSet:
    targets = np.random.default_rng(0).dirichlet(np.ones(4), n).astype(np.float32)
    targets[:, 1] = 0
    targets /= targets.sum(1, keepdims=True)
    return TrainingSet(
        Selection(faces(n)), targets.argmax(1), np.arange(100, 100 + n), np.zeros(n, dtype=bool), targets
    )


def soft_loader(epoch: int = 0, rank: int = 0, world: int = 1, **options: object) -> FaceLoader:
    training = soft_training()
    order = TrainingOrder(60, 12, seed=5, rank=rank, world=world)
    order.set_epoch(epoch)
    device = torch.device("cpu")
    return FaceLoader(
        training.images, training.labels, training.rows, order, device, targets=training.targets, **options
    )  # type: ignore[arg-type]


def test_distributions_follow_their_images() -> None:
    training = soft_training()
    resampled = Resample({"a": 0.5, "c": 3}, [{"name": "HorizontalFlip", "p": 1.0}])(training, ("a", "b", "c", "d"))
    assert training.targets is not None and resampled.targets is not None
    assert (resampled.targets == training.targets[resampled.rows - 100]).all()
    for batch in soft_loader():
        assert batch.targets is not None
        np.testing.assert_array_equal(batch.targets, training.targets[batch.rows - 100])
    for batch in soft_loader(mix=Mix(), class_counts=np.full(4, 15)):
        assert batch.targets is not None
        own = training.targets[batch.rows - 100]
        partner = own.reshape(-1, 2, 4)[:, ::-1].reshape(-1, 4)
        assert (batch.targets.numpy() <= np.maximum(own, partner) + 1e-6).all()
        assert (batch.targets.numpy() >= np.minimum(own, partner) - 1e-6).all()
        assert not np.allclose(batch.targets, own)


def test_drawn_labels_depend_only_on_seed_epoch_and_row() -> None:
    def drawn(*loaders: FaceLoader) -> dict[int, int]:
        return {int(r): int(y) for loader in loaders for b in loader for r, y in zip(b.rows, b.labels, strict=True)}

    first = drawn(soft_loader(draw_labels=True))
    assert first == drawn(*(soft_loader(rank=rank, world=3, draw_labels=True) for rank in range(3)))
    assert drawn(soft_loader(draw_labels=True, skip=24)).items() < first.items()
    again = soft_loader(epoch=1, draw_labels=True)
    assert (other := drawn(again)) != first
    again.sampler.set_epoch(0)  # type: ignore[union-attr]
    assert drawn(again) == first != other
    assert all(batch.targets is None for batch in again)


def test_labels_are_drawn_in_proportion() -> None:
    targets = np.array([[0.0, 0.2, 0.0, 0.8, 0.0]], dtype=np.float32).repeat(5000, 0)
    shares = np.bincount(draw_labels(targets, np.arange(5000), seed=0, epoch=0), minlength=5) / 5000
    assert shares == pytest.approx([0, 0.2, 0, 0.8, 0], abs=0.02)
    assert not shares[[0, 2, 4]].any()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, NDArray[np.int64]]:
    """A fer2013.csv, its votes, and those as an array: 120 training images, 40 for validation and test each."""
    folder = tmp_path_factory.mktemp("ferplus")
    rng = np.random.default_rng(0)
    seen = np.tile(np.arange(10), 20)  # unknown and not-a-face among them
    votes = rng.multinomial(10, 0.6 * np.eye(10)[seen] + 0.4 * rng.dirichlet(np.full(10, 0.3), 200))
    votes[:10] = 10 * np.eye(10, dtype=np.int64)
    usage = np.repeat(["Training", "PublicTest", "PrivateTest"], [120, 40, 40])
    rows = [{"emotion": i % 7, "pixels": pixel_text(f), "usage": usage[i]} for i, f in enumerate(faces(200))]
    (folder / "fer2013.csv").write_bytes(csv_bytes(rows))
    frame = pd.DataFrame(votes, columns=list(ferplus.VOTES))
    frame.insert(0, "Image name", "")
    frame.insert(0, "Usage", usage)
    path = folder / "fer2013new.csv.gz"
    path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    return folder / "fer2013.csv", path, votes


MERGE = "data.merge={contempt: disgust}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.target=crossentropy", MERGE, "imbalance=balanced_weighted", "mix=mixup"],
        *(
            pytest.param(overrides, marks=pytest.mark.slow)
            for overrides in (
                ["data.target=majority", "imbalance=balanced_softmax"],
                ["data.target=probability", "mix=cutmix", "protocol=report"],
                *(
                    ["data.target=crossentropy", f"imbalance={name}"]
                    for name in ("sampler", "focal", "class_balanced", "logit_adjusted", "balanced_softmax", "remix")
                ),
            )
        ),
    ],
    ids=" ".join,
)
def test_every_target_trains(train: Train, source: tuple[Path, Path, NDArray[np.int64]], overrides: list[str]) -> None:
    path, votes_path, votes = source
    run = train(*FAST, f"data.path={path}", f"data.votes={votes_path}", *overrides)
    assert run.code == 0, run.err
    classes = ferplus.CLASSES
    if MERGE in overrides:
        votes, classes = np.where(np.arange(10) == 5, votes + votes[:, [7]], votes * (np.arange(10) != 7)), FER_CLASSES
    test = pd.read_csv(run.folder / "report/predictions.csv", keep_default_na=False)
    labels = [ferplus.CLASSES[row.argmax()] if row.any() else "" for row in expected(votes, "majority")]
    assert test["label"].tolist() == labels[120 if "protocol=report" in overrides else 160 :]
    again, metrics = evaluate(run.folder, trust=True), json.loads((run.folder / "metrics.json").read_text())
    assert again["test/accuracy"] == pytest.approx(metrics["test/accuracy"])
    assert sum(metrics[f"test/support/{name}"] for name in classes) == sum(map(bool, test["label"]))
    assert [name for name in ferplus.CLASSES if f"test/f1/{name}" in metrics] == list(classes)


def test_losses_for_one_true_class_learn_drawn_labels(
    train: Train, source: tuple[Path, Path, NDArray[np.int64]]
) -> None:
    small = [s for s in FAST if "SmallNetwork" not in s]
    run = train(
        *small, "model.width=4", f"data.path={source[0]}", f"data.votes={source[1]}", "data.target=probability",
        "imbalance=ldam_drw", "trainer.limit_train_batches=2",
    )  # fmt: skip
    assert run.code == 0, run.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.votes=null"], "data.votes is not set.*github.com/microsoft/FERPlus"),
        (["data.votes=nowhere.csv"], "data.votes .*nowhere.csv does not exist: get fer2013new.csv"),
        (["data.target=votes"], r"data.target: Invalid value 'votes', expected one of \[majority, probability, cross"),
        (["data.target=crossentropy", "imbalance=ldam_drw"], "contradicts data.target=crossentropy: .* one true class"),
        (["data.merge={contempt: disgusted}"], "data.merge: FER.* has no class 'disgusted', only angry"),
        (["data.merge=contempt"], "data.merge=contempt: null, or names of classes like {contempt: disgust}"),
        (["data.classes=[joy]"], "data.classes: .*fer2013.csv with FER.* labels has no class 'joy'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options(
    train: Train, source: tuple[Path, Path, NDArray[np.int64]], overrides: list[str], message: str
) -> None:
    needs_head = [s for s in FAST if "SmallNetwork" not in s]
    run = train(*needs_head, "model.width=8", f"data.path={source[0]}", f"data.votes={source[1]}", *overrides)
    assert run.code == 1
    assert re.search(f"^error: .*{message}", run.err.strip().splitlines()[-1]), run.err
    assert not (run.folder / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.target=crossentropy", "data.target=crossentropy contradicts data=synthetic"),
        ("data.votes=votes.csv", "synthetic does not number its images by the rows of fer2013.csv"),
    ],
)
def test_synthetic_faces_have_no_votes(train: Train, override: str, message: str) -> None:
    assert message in train("data=synthetic", override).err


def damaged(text: str, what: str) -> str:
    lines = text.splitlines()
    if what == "row":
        del lines[-1]
    elif what == "usage":
        lines[6] = lines[6].replace("Training", "PublicTest")
    elif what == "split":
        lines[6] = lines[6].replace("Training", "Tuning")
    elif what == "votes":
        lines[3] = lines[3].rpartition(",")[0] + ",many"
    elif what == "short":
        lines[3] = lines[3].rpartition(",")[0]
    elif what == "column":
        lines[0] = lines[0].replace("contempt", "content")
    else:
        return "no CSV \0 at all"
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("row", "has 199 rows and .*fer2013.csv 200: FER.* votes belong to the complete fer2013.csv, row by row"),
        ("usage", "row 5 is of the split 'public', and .*fer2013.csv, row 5 of 'train'"),
        ("split", "row 5: Usage 'Tuning' is not Training"),
        ("votes", "row 2: NF 'many' is not a number of votes"),
        ("short", "row 2: NF '' is not a number of votes"),
        ("column", "has no column contempt: get fer2013new.csv"),
        ("all", "has no column Usage"),
    ],
)
def test_votes_of_other_images_are_rejected(
    source: tuple[Path, Path, NDArray[np.int64]], tmp_path: Path, what: str, message: str
) -> None:
    path = tmp_path / "votes.csv"
    path.write_text(damaged(gzip.decompress(source[1].read_bytes()).decode(), what))
    with pytest.raises(UserError, match=message):
        ferplus.attach(sources.load(source[0]), path)


def test_damaged_votes_and_folders(source: tuple[Path, Path, NDArray[np.int64]], tmp_path: Path) -> None:
    (tmp_path / "votes.csv.gz").write_bytes(source[1].read_bytes()[:500])
    with pytest.raises(UserError, match=r"votes.csv.gz is damaged or truncated"):
        ferplus.attach(sources.load(source[0]), tmp_path / "votes.csv.gz")
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(bytes(80 << 20)))
    with pytest.raises(UserError, match=r"bomb.csv.gz decompresses to over .* as only a bomb does"):
        ferplus.attach(sources.load(source[0]), tmp_path / "bomb.csv.gz")
    folder = sources.load(write_folder(tmp_path / "mine", folder_files()))
    with pytest.raises(UserError, match=r"does not number its images .* leave data.votes out"):
        ferplus.attach(folder, source[1])


@pytest.mark.slow
def test_killed_run_on_drawn_labels_resumes(source: tuple[Path, Path, NDArray[np.int64]], tmp_path: Path) -> None:
    settings = (
        *FAST, "data.target=probability", f"data.path={source[0]}", f"data.votes={source[1]}", "trainer.max_epochs=3",
        "trainer.log_every_n_steps=3", "logger=csv",
    )  # fmt: skip
    whole = apart(tmp_path, *settings, f"hydra.run.dir={tmp_path}/whole")
    assert whole.code == 0, whole.err
    end = ending("on_train_batch_end", 8, "SIGTERM", tmp_path / "sent")
    assert apart(tmp_path, *settings, *end, f"hydra.run.dir={tmp_path}/killed").code != 0
    second = apart(tmp_path, *resumed(tmp_path / "killed"))
    assert second.code == 0, second.err
    assert_same(tmp_path / "killed", outcome(tmp_path / "whole"))


@pytest.mark.real_data
@pytest.mark.parametrize("merge", [None, {"contempt": "disgust"}])
def test_real_votes_file(real_csv: FaceTable, fer2013_dir: Path, merge: dict[str, str] | None) -> None:
    """Every row by the rules, and the counts of docs/data.md. Those of majority are 25,060 / 3,199 / 3,153."""
    faces = ferplus.attach(real_csv, fer2013_dir / "fer2013new.csv")
    assert faces.votes is not None and (faces.labels == real_csv.labels).all()
    votes = faces.votes.astype(np.int64)
    if merge:
        votes[:, 5] += votes[:, 7]
        votes[:, 7] = 0
    alone, shares = expected(votes, "majority"), expected(votes, "crossentropy")
    made = ferplus.relabelled(faces, "crossentropy", merge)
    classes = len(made.classes)
    assert made.targets is not None and not shares[:, classes:].any()
    np.testing.assert_allclose(made.targets, shares[:, :classes], rtol=1e-6)
    np.testing.assert_array_equal(made.labels, np.where(alone.any(1), alone.argmax(1), UNLABELLED))
    counts = [[made.counts(made.rows(s), training=t).sum() for s in ("train", "public", "private")] for t in (0, 1)]  # type: ignore[arg-type]
    with_contempt = [[25060, 3199, 3153], [27956, 3505, 3505]]
    assert counts == ([[25026, 3194, 3149], [27971, 3505, 3502]] if merge else with_contempt)
