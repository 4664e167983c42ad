import errno
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fer_lightning.data.table import FER_CLASSES
from fer_lightning.report import page, style, tables
from fer_lightning.report.tables import most_confident
from fer_lightning.report.write import write_report

HOSTILE = ["<script>alert(1)</script>", '"><img src=http://x.org/a.png>', "a&b;$x$", "plain"]

FILES = {
    *["predictions.csv", "classification_report.csv", "confusion_matrix.csv", "index.html"],
    *["confusion_matrix.png", "curves.png", "class_counts.png", "reliability.png", "mistakes.png"],
}


@pytest.fixture(autouse=True)
def small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 50)  # drawing takes most of the time of these tests


class Reader(HTMLParser):
    """Checks that tags match, and collects the text, the tags and every address that a browser would open."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def scored(classes: list[str], n: int = 60, labelled: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), labels] += 1
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if not labelled:
        labels[:] = -1
    return tables.predictions([f"row {i}" for i in range(n)], ["public"] * n, labels, p, rng.random(n) < 0.8, classes)


def write(folder: Path, classes: list[str], **changes: object) -> Path:
    counts = {name: 10 * i + 1 for i, name in enumerate(classes)}
    inputs = {
        "predictions": scored(classes),
        "classes": classes,
        "counts_before": counts,
        "counts_after": counts | {classes[0]: 30},
        "metrics": {"test/accuracy": 0.5512, "test/accuracy_low": 0.54, "test/accuracy_high": 0.5631},
        "history": pd.DataFrame({"epoch": [0, 1], "val/loss": [2.0, 1.0], "val/accuracy": [0.2, 0.4]}),
        "images": np.zeros((60, 48, 48), dtype=np.uint8),
        "config_yaml": "seed: 0  # <b>",
        "about": {"name": "run <1>", "protocol": "report"},
    }
    return write_report(folder, **(inputs | changes))


def test_report_folder_is_complete_and_consistent(tmp_path: Path) -> None:
    index = write(tmp_path, list(FER_CLASSES))

    assert index == tmp_path / "report" / "index.html"
    assert {path.name for path in index.parent.iterdir()} == FILES  # no temporary file either
    predictions = pd.read_csv(index.parent / "predictions.csv")
    report = pd.read_csv(index.parent / "classification_report.csv", index_col="class")
    confusion = pd.read_csv(index.parent / "confusion_matrix.csv", index_col="true")
    assert report.loc["accuracy", "f1"] == pytest.approx(predictions["correct"].mean(), abs=1e-6)
    assert np.trace(confusion) == predictions["correct"].sum()
    assert list(confusion.sum(axis=1)) == list(report["support"].iloc[:7])
    assert confusion.loc["sad", "fear"] == len(predictions.query("label == 'sad' and prediction == 'fear'"))
    for path in index.parent.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_page_loads_nothing_and_shows_hostile_names_as_text(tmp_path: Path) -> None:
    html = write(tmp_path, HOSTILE).read_text()
    reader = Reader(html)

    assert "script" not in reader.tags and "link" not in reader.tags
    for address in reader.addresses:
        assert address.startswith("data:image/png;base64,") or address in FILES
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import", html.partition("<style>")[2].partition("</style>")[0])
    for text in [*HOSTILE, "run <1>", "# <b>", "0.551", "95 % interval 0.540 to 0.563"]:
        assert text in reader.text
    assert reader.tags.count("img") == 4 + html.count("<figure>") > 30


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {}, "about": {}, "history": None, "config_yaml": ""},
        {"metrics": {"test/accuracy": float("nan"), "test/loss": "none", "val/accuracy": 0.5, "train/seconds": 3.2}},
        {"counts_before": {}, "counts_after": {}},
        {"history": pd.DataFrame()},
    ],
    ids=["nothing optional", "odd metrics", "no counts", "no epochs"],
)
def test_missing_parts_do_not_break_the_page(tmp_path: Path, changes: dict[str, object]) -> None:
    text = Reader(write(tmp_path, ["a", "b"], **changes).read_text()).text
    assert "nan" not in text and "None" not in text
    assert "Confusion matrix" in text


def test_unlabelled_images_only_appear_in_the_predictions(tmp_path: Path) -> None:
    index = write(tmp_path, ["a", "b"], predictions=scored(["a", "b"], labelled=False))
    assert {path.name for path in index.parent.iterdir()} == {
        *["predictions.csv", "class_counts.png", "curves.png", "index.html"]
    }
    assert pd.read_csv(index.parent / "predictions.csv")["label"].isna().all()
    assert "Confusion matrix" not in Reader(index.read_text()).text


def test_most_confident_come_first() -> None:
    frame = scored(["a", "b", "c"])
    frame.loc[0, ["label", "correct"]] = ["", pd.NA]
    for correct in (True, False):
        rows = most_confident(frame, correct=correct)
        assert 0 not in rows and len(rows) == (frame["correct"] == correct).sum()
        assert frame["correct"].iloc[rows].eq(correct).all()
        assert frame["confidence"].iloc[rows].is_monotonic_decreasing
    assert set(frame["label"].iloc[most_confident(frame, correct=True, label="b")]) == {"b"}


def test_failed_write_leaves_existing_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tmp_path / "report" / "predictions.csv"
    before.parent.mkdir()
    before.write_text("earlier")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, ["a", "b"], history=None)
    assert list(before.parent.iterdir()) == [before]
    assert before.read_text() == "earlier"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (61, "1 min 1 s"), (4321.5, "1 h 12 min"), (59.96, "1 min 0 s")]
)
def test_training_time_is_formatted_for_people(seconds: float, text: str) -> None:
    assert page.results({}, {"train/seconds": seconds})["facts"] == {"training time": text}


def test_scores_of_all_and_clean_images_are_side_by_side(tmp_path: Path) -> None:
    metrics = {"test/accuracy": 0.7, "test/support/a": 60.0, "test/support/b": 40.0}
    metrics |= {"test/clean/accuracy": 0.6, "test/clean/support/a": 50.0}
    text = Reader(write(tmp_path, ["a", "b"], metrics=metrics).read_text()).text
    assert re.search(r"All test imagesClean test images\s+Images10050\s+Accuracy0\.7000\.600", text)
