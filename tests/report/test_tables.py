from io import StringIO

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import classification_report as sklearn_report

from fer_lightning.report import tables


@pytest.fixture
def frame() -> pd.DataFrame:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
    return tables.predictions(
        ["row 1", "ảnh/2.png", "row 3"],
        ["public", "private", "private"],
        np.array([0, 2, -1]),
        probabilities,
        np.array([True, False, True]),
        ["a", "b", "c"],
    )


def test_predictions_have_a_row_for_every_image_in_order(frame: pd.DataFrame) -> None:
    assert list(frame.columns) == [
        *["id", "split", "label", "prediction", "correct", "confidence", "clean"],
        *["p_a", "p_b", "p_c"],
    ]
    assert list(frame["id"]) == ["row 1", "ảnh/2.png", "row 3"]
    assert list(frame["label"]) == ["a", "c", ""]
    assert list(frame["prediction"]) == ["a", "b", "c"]
    assert list(frame["correct"].fillna(False)) == [True, False, False]
    assert list(frame["correct"].isna()) == [False, False, True]
    assert list(frame["clean"]) == [True, False, True]
    np.testing.assert_allclose(frame["confidence"], [0.7, 0.6, 0.5], rtol=1e-6)


def test_predictions_round_trip_through_csv(frame: pd.DataFrame) -> None:
    text = frame.to_csv(index=False, float_format="%.6g")
    assert text.splitlines()[1] == "row 1,public,a,a,True,0.7,True,0.7,0.2,0.1"
    assert text.splitlines()[3] == "row 3,private,,c,,0.5,True,0.25,0.25,0.5"
    back = pd.read_csv(StringIO(text), keep_default_na=False)
    assert list(tables.labels_of(back, ["a", "b", "c"])) == [0, 2, -1]
    np.testing.assert_allclose(
        tables.probabilities_of(back, "abc"), tables.probabilities_of(frame, "abc"), rtol=1e-5, atol=0
    )


def test_no_images_give_an_empty_table() -> None:
    frame = tables.predictions([], [], np.zeros(0, int), np.zeros((0, 2)), np.zeros(0, bool), ["a", "b"])
    assert len(frame) == 0 and "p_b" in frame


@pytest.mark.parametrize("n_classes", [2, 7, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_classification_report_equals_scikit_learn(n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, 60, (n_classes, n_classes))
    confusion[:, 0] = 0  # never predicted
    if n_classes > 2:
        confusion[1] = 0  # never occurs
    names = [f"class {i:02d}" for i in range(n_classes)]
    true, predicted = (np.repeat(axis.ravel(), confusion.ravel()) for axis in np.indices(confusion.shape))
    expected = sklearn_report(
        true, predicted, labels=range(n_classes), target_names=names, output_dict=True, zero_division=0
    )

    report = tables.classification_report(confusion, names).set_index("class")

    assert list(report.index) == [*names, "accuracy", "macro avg", "weighted avg"]
    for name in [*names, "macro avg", "weighted avg"]:
        for ours, theirs in {"precision": "precision", "recall": "recall", "f1": "f1-score"}.items():
            assert report.loc[name, ours] == pytest.approx(expected[name][theirs], abs=1e-6)
        assert report.loc[name, "support"] == expected[name]["support"]
    accuracy = report.loc["accuracy"]
    assert accuracy["f1"] == pytest.approx(expected["accuracy"], abs=1e-6)
    assert np.isnan(accuracy["precision"]) and np.isnan(accuracy["recall"])
    assert accuracy["support"] == confusion.sum()


def test_confusion_matrix_names_rows_and_columns() -> None:
    table = tables.confusion_matrix(np.array([[3, 1], [2, 4]]), ["a", "b"])
    assert table.loc["a", "b"] == 1 and table.loc["b", "a"] == 2
    assert table.to_csv().splitlines() == ["true,a,b", "a,3,1", "b,2,4"]


def test_printed_report_does_not_interpret_markup_in_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]angry[/red]", "x"]
    labels, guesses = np.repeat([0, 0, 1, 1], [3, 1, 2, 4]), np.repeat([0, 1, 0, 1], [3, 1, 2, 4])
    ten = ["y"] * 10
    predictions = tables.predictions(ten, ten, labels, np.eye(2)[guesses], np.ones(10, dtype=bool), names)
    tables.print_report(predictions, names, "Per class")
    text = capsys.readouterr().out
    assert "[red]angry[/red]" in text and "weighted avg" in text and "0.700" in text and "nan" not in text
