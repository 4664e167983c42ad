import warnings
from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error

from fer_lightning.report import figures, style

LONG = "a class name that is far too long for the axis of a figure, even a wide one"


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text)}


def draw(figure: Figure) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that collapsed, a missing glyph, a mean of nothing
        png = style.png(figure)
    return Image.open(BytesIO(png))


def history(epochs: int) -> pd.DataFrame:
    t = np.arange(epochs)
    return pd.DataFrame(
        {
            "epoch": t,
            "train/loss": 2 * 0.9**t,
            "val/loss": 2 * 0.95**t,
            "train/accuracy": 1 - 0.8 * 0.9**t,
            "val/accuracy": 0.7 - 0.001 * (t - 6) ** 2,
            "val/f1_macro": 0.6 - 0.001 * (t - 6) ** 2,
            "lr": 0.1 * 0.9**t,
        }
    )


def test_figures_do_not_change_matplotlib_settings() -> None:
    before = dict(matplotlib.rcParams)
    first = style.png(figures.confusion_matrix(np.eye(2, dtype=int), ["a", "b"]))
    assert dict(matplotlib.rcParams) == before
    assert first == style.png(figures.confusion_matrix(np.eye(2, dtype=int), ["a", "b"]))
    assert Image.open(BytesIO(first)).info["dpi"] == pytest.approx((200, 200), abs=0.1)


@pytest.mark.parametrize("classes", [["$x$", LONG], [f"class {i}" for i in range(7)]], ids=["2 classes", "7 classes"])
def test_confusion_matrix(classes: list[str]) -> None:
    n = len(classes)
    confusion = np.arange(n * n).reshape(n, n) * 100
    confusion[-1] = 0  # a class that does not occur
    figure = figures.confusion_matrix(confusion, classes)
    draw(figure)
    assert "100" in texts(figure)
    assert f"{100 / confusion[0].sum():.1%}" in texts(figure)
    assert f"{classes[0]} ({confusion[0].sum():,})" in texts(figure)


def test_text_is_readable_on_every_cell() -> None:
    def luminance(colour: object) -> float:
        rgb = np.array(matplotlib.colors.to_rgb(colour))
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    n = 21
    confusion = np.zeros((n, n), dtype=int)
    confusion[np.arange(n), 0] = np.arange(n) * 5  # shares 0 %, 5 % … 100 %
    confusion[np.arange(n), 1] = 100 - confusion[:, 0]
    figure = figures.confusion_matrix(confusion, [str(i) for i in range(n)])
    image = figure.axes[0].images[0]
    for cell in figure.axes[0].texts:
        column, row = (int(x) for x in cell.xy)
        tones = sorted(
            [luminance(cell.get_color()), luminance(image.cmap(image.norm(confusion[row, column] / 100))[:3])]
        )
        assert (tones[1] + 0.05) / (tones[0] + 0.05) > 4, (row, column)  # 4.5 is out of reach in mid-blue


def test_curves_mark_the_epoch_of_the_checkpoint() -> None:
    figure = figures.curves(history(20), "val/f1_macro", 6)
    draw(figure)
    assert "Best, 0.600 in epoch 6" in texts(figure)
    assert len(figure.axes) == 3
    assert not [text for text in texts(figures.curves(history(20))) if text.startswith("Best")]
    lowest = figures.curves(history(20), "val/loss", 19)
    assert f"Best, {2 * 0.95**19:.3f} in epoch 19" in texts(lowest)


@pytest.mark.parametrize(
    ("table", "panels"),
    [
        (history(1), 3),
        (history(10)[["epoch", "val/loss"]], 1),
        (history(10).assign(**{"val/f1_macro": np.nan, "val/loss": np.inf}), 3),
    ],
    ids=["one epoch", "one column", "nothing finite"],
)
def test_curves_draw_the_columns_that_exist(table: pd.DataFrame, panels: int) -> None:
    figure = figures.curves(table, "val/f1_macro", 0)
    draw(figure)
    assert len(figure.axes) == panels


def test_class_counts_show_kept_added_and_dropped_images() -> None:
    before = {"disgust": 436, "happy": 7215, "sad": 4830}
    figure = figures.class_counts(before, {"disgust": 2616, "happy": 5772, "sad": 4830})
    draw(figure)
    assert {"436", "7,215", "4,830", "2,616 (+2,180)", "5,772 (-1,443)", "Kept", "Added", "Dropped"} <= texts(figure)
    assert {"In the training split: 12,481", "After resampling: 13,218"} <= texts(figure)


def test_class_counts_without_a_change_are_one_panel() -> None:
    figure = figures.class_counts({LONG: 3, "b": 0}, {LONG: 3, "b": 0})
    draw(figure)
    assert len(figure.axes) == 1


def test_class_counts_of_thirty_classes() -> None:
    draw(figures.class_counts({f"class {i}": i for i in range(30)}, {f"class {i}": 15 for i in range(30)}))


def test_reliability_shows_the_calibration_error_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    probabilities = torch.tensor(rng.normal(size=(2000, 7)) * 2).softmax(1).numpy()
    labels = rng.integers(0, 7, 2000)
    expected = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 7, n_bins=15)
    figure = figures.reliability(probabilities, labels)
    draw(figure)
    assert f"Expected calibration error {expected:.3f}" in texts(figure)
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 2000


def test_reliability_shows_the_calibration_error_before_and_after_a_temperature() -> None:
    logits = torch.tensor(np.random.default_rng(0).normal(size=(2000, 7)) * 4)
    labels = (logits / 2 + torch.tensor(np.random.default_rng(1).gumbel(size=(2000, 7)))).argmax(1)
    errors = [multiclass_calibration_error((logits / t).softmax(1), labels, 7, n_bins=15) for t in (1, 2)]
    figure = figures.reliability(logits.softmax(1).numpy(), labels.numpy(), 2.0)
    draw(figure)
    assert f"As trained, ECE {errors[0]:.3f}" in texts(figure)
    assert f"Temperature 2.00, ECE {errors[1]:.3f}" in texts(figure)
    assert errors[1] < errors[0] / 3


def test_reliability_ignores_unlabelled_and_infinite_rows() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [np.nan, np.nan], [1.0, 0.0]])
    figure = figures.reliability(probabilities, np.array([0, -1, 0, 0]))
    draw(figure)
    assert "Expected calibration error 0.050" in texts(figure)  # (|0.9 - 1| + |1 - 1|) / 2
    draw(figures.reliability(probabilities, np.full(4, -1)))
    draw(figures.reliability(np.zeros((0, 2)), np.zeros(0, dtype=int)))


@pytest.mark.parametrize("n", [1, 11])
def test_faces(n: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (n, 48, 48), dtype=np.uint8)
    figure = figures.faces(images, [f"face {i}\n{LONG}" for i in range(n)])
    draw(figure)
    assert sum(len(axes.images) for axes in figure.axes) == n
    assert {f"face {i}\n{style.short(LONG, 18)}" for i in range(n)} <= texts(figure)
