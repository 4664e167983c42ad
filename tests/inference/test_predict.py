"""`fer-lightning predict`: photos, folders and videos in; rows, tables and annotated copies out."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from fer_lightning import load_model
from fer_lightning.data.readers import sources
from fer_lightning.errors import UserError
from fer_lightning.inference import modelfile
from fer_lightning.inference import predict as predicting
from fer_lightning.inference.evaluate import evaluate
from fer_lightning.inference.faces.choose import load_detector
from fer_lightning.inference.faces.frame import crop
from fer_lightning.inference.media import table
from fer_lightning.inference.media.annotate import VideoWriter
from fer_lightning.inference.media.video import frames
from tests import processes
from tests.inference.faces.pictures import photo
from tests.inference.media.videos import cv2, write_video

FACES = ((200, 180, 140), (460, 300, 80))
"""Centre and side of the drawn faces of `group`, the largest first."""


class Printed(NamedTuple):
    """How a command ended, and what it, OpenCV and FFmpeg printed."""

    code: int
    out: str
    err: str


Predict = Callable[..., Printed]


def arguments_of(inputs: Sequence[object], models: Sequence[Path]) -> list[str]:
    return ["fer-lightning", "predict", *map(str, inputs), *(f"--model={path}" for path in models)]


@pytest.fixture
def predict(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Predict:
    """Runs `fer-lightning predict` here, in a folder of its own, with the tiny model unless another one is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def predict(*inputs: object, models: Sequence[Path] = (model_file,)) -> Printed:
        from fer_lightning.cli import app

        monkeypatch.setattr(sys, "argv", arguments_of(inputs, models))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app()
        return Printed(int(ended.value.code or 0), *capfd.readouterr())

    return predict


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", dtype={"note": str}).fillna({"note": ""})


def probabilities_of(rows: pd.DataFrame) -> NDArray[np.float64]:
    return rows[[name for name in rows if name.startswith("p_")]].to_numpy(float)


def tempered(probabilities: NDArray[np.float64], *models: Path) -> NDArray[np.float64]:
    """Probabilities after the mean temperature of models."""
    known = [load_model(one, accelerator="cpu").calibration for one in models]
    powers = probabilities ** (1 / np.mean([one.temperature for one in known if one]))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A photo of two faces."""
    path = tmp_path / "group.png"
    Image.fromarray(photo(480, 640, *FACES)).save(path)
    return path


@pytest.fixture
def faces(tmp_path: Path, test_images: NDArray[np.uint8]) -> Path:
    """A folder of ten face images."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for i, image in enumerate(test_images[:10]):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A video of 1.2 s with a face that moves to the right."""
    return write_film(tmp_path / "film.mp4")


def write_film(path: Path, n: int = 12) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (240, 200))
    assert writer.isOpened()
    for i in range(n):
        writer.write(photo(200, 240, (100 + 3 * i, 100, 90)))
    writer.release()
    return path


# ---------------------------------------------------------------- photos


def test_rows_are_what_the_model_says_of_the_faces_that_the_detector_finds(
    predict: Predict, group: Path, model_file: Path, tmp_path: Path
) -> None:
    ended = predict(group, "--detector=haar", "--out=out")
    assert ended.code == 0 and ended.err == ""
    rows, predictor, detector = rows_of(tmp_path / "out"), load_model(model_file), load_detector("haar")[0]
    image = np.asarray(Image.open(group))
    found = detector(image)
    expected = predictor.probabilities(np.stack([crop(image, face, detector.rule) for face in found]))
    assert rows["file"].tolist() == [str(group)] * 2 and rows["face"].tolist() == [1, 2]
    for row, face, (x, y, _) in zip(rows.itertuples(), found, FACES, strict=True):
        assert (row.x, row.y, row.width, row.height) == tuple(map(round, (face.x, face.y, face.width, face.height)))
        assert abs(row.x + row.width / 2 - x) < 15 and abs(row.y + row.height / 2 - y) < 25
    np.testing.assert_allclose(probabilities_of(rows), expected, atol=6e-5)
    assert list(rows["label"]) == [predictor.classes[i] for i in expected.argmax(1)]
    np.testing.assert_allclose(rows["confidence"], expected.max(1), atol=6e-5)
    assert predictor.calibration is not None
    assert list(rows["unsure"]) == list(expected.max(1) < predictor.calibration.threshold)
    for label, confidence in zip(rows["label"], rows["confidence"], strict=True):
        assert label in ended.out and f"{confidence:.0%}" in ended.out
    assert "out/predictions.csv" in ended.out


def test_python_gives_what_the_command_prints(predict: Predict, group: Path, model_file: Path, tmp_path: Path) -> None:
    assert predict(group, "--detector=haar", "--out=out").code == 0
    rows, predictor = rows_of(tmp_path / "out"), load_model(model_file)
    of_file, of_pixels = (
        predictor.find_and_predict(photo, detector)
        for photo, detector in ((group, "haar"), (np.asarray(Image.open(group)), load_detector("haar")[0]))
    )
    assert of_file == of_pixels and len(of_file) == 2
    for found, row in zip(of_file, rows.to_dict("records"), strict=True):
        assert found.box is not None
        assert list(map(round, found.box)) == [row[name] for name in ("x", "y", "width", "height")]
        assert (found.label, found.unsure, found.note) == (row["label"], row["unsure"], row["note"])
        assert found.confidence == found.probabilities[found.label] == max(found.probabilities.values())
        assert found.probabilities == pytest.approx({c: row[f"p_{c}"] for c in predictor.classes}, abs=6e-5)


def test_faces_and_photos_in_python(model_file: Path, test_images: NDArray[np.uint8], tmp_path: Path) -> None:
    predictor = load_model(model_file)
    answers, expected = predictor.predict(test_images), predictor.probabilities(test_images)
    assert [answer.label for answer in answers] == [predictor.classes[i] for i in expected.argmax(1)]
    assert [list(answer.probabilities.values()) for answer in answers] == expected.tolist()
    assert all(answer.box is None for answer in answers)
    assert predictor.predict(test_images[:0]) == []
    blank = np.full((60, 90, 3), 128, np.uint8)
    assert predictor.find_and_predict(blank, "haar") == []
    (whole,) = predictor.find_and_predict(blank, "none")
    assert whole.box == (15, 0, 60, 60)
    with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\)"):
        predictor.find_and_predict(test_images[0], "haar")
    with pytest.raises(ValueError, match="faces must have 48 by 48 pixels, not 96 by 96"):
        predictor.predict(np.zeros((2, 96, 96), np.uint8))
    with pytest.raises(TypeError, match=r"not Image; numpy\.asarray"):
        predictor.find_and_predict(Image.new("RGB", (90, 60)), "haar")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"missing\.jpg"):
        predictor.find_and_predict(tmp_path / "missing.jpg")


def test_json_has_an_object_per_face_and_nothing_else(predict: Predict, group: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "grey").save(tmp_path / "empty.png")
    ended = predict(group, tmp_path / "empty.png", "--json", "--detector=haar", "--out=out")
    one, two, none = map(json.loads, ended.out.splitlines())
    rows = rows_of(tmp_path / "out")
    for found, row in zip((one, two), rows.to_dict("records"), strict=False):
        assert found["box"] == [row[name] for name in ("x", "y", "width", "height")]
        assert (found["face"], found["label"], found["unsure"]) == (row["face"], row["label"], row["unsure"])
        assert found["probabilities"] == {name[2:]: row[name] for name in row if name.startswith("p_")}
        assert found["confidence"] == max(found["probabilities"].values()) and found["time"] is None
    assert (none["file"], none["note"], none["label"]) == (str(tmp_path / "empty.png"), "no face", None)
    assert rows["note"].tolist() == ["", "", "no face"]


@pytest.mark.parametrize("given", ["faces", "faces/*.png", "fa*", "files"])
def test_folders_and_patterns_stand_for_their_files(given: str, predict: Predict, faces: Path, tmp_path: Path) -> None:
    inputs = [faces / f"{i}.png" for i in range(10)] if given == "files" else [given]
    assert predict(*inputs, "--detector=none", "--out=out").code == 0
    rows = rows_of(tmp_path / "out")
    assert [Path(file).name for file in rows["file"]] == [f"{i}.png" for i in range(10)]


@pytest.mark.parametrize("detector", ["none", "haar"])
def test_first_frame_of_an_animation_is_noted(detector: str, predict: Predict, tmp_path: Path) -> None:
    pictures = [Image.new("L", (60, 60), grey) for grey in (10, 200)]
    pictures[0].save(tmp_path / "two.gif", save_all=True, append_images=pictures[1:])
    assert predict("two.gif", f"--detector={detector}", "--out=out").code == 0
    (note,) = rows_of(tmp_path / "out")["note"]
    assert note == ("" if detector == "none" else "no face, ") + "animation: first frame only"


def test_small_files_are_noted(predict: Predict, tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        Image.new("L", (39, 60)).save(tmp_path / name)
    assert predict("a.png", "a.tif", "--detector=none", "--out=out").code == 0
    assert rows_of(tmp_path / "out")["note"].tolist() == ["small"] * 2


def test_preview_of_a_camera_raw_is_no_face(predict: Predict, tmp_path: Path) -> None:
    Image.new("L", (60, 60)).save(tmp_path / "raw.tif", tiffinfo={254: 1})
    ended = predict("raw.tif", "--detector=none")
    assert ended.code == 1 and "only a preview of this camera's format" in ended.err


@pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="this Pillow reads no AVIF")
def test_formats_that_training_does_not_read_are_faces_too(predict: Predict, tmp_path: Path) -> None:
    Image.fromarray(photo(200, 200, (100, 100, 90))).save(tmp_path / "face.avif")
    ended = predict("face.avif", "--detector=none", "--out=out")
    assert (ended.code, ended.err) == (0, "")
    assert rows_of(tmp_path / "out")["label"].notna().all()


def test_json_names_files_as_they_are(predict: Predict, tmp_path: Path) -> None:
    name = "Bild\u202fÄ.png"
    Image.new("L", (48, 48)).save(tmp_path / name)
    assert json.loads(predict(name, "--detector=none", "--json").out)["file"] == name


def test_with_detector_none_the_pixels_are_those_of_the_file(
    predict: Predict, faces: Path, model_file: Path, test_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    assert predict(faces, "--detector=none", "--out=out").code == 0
    rows, expected = rows_of(tmp_path / "out"), load_model(model_file).probabilities(test_images[:10])
    np.testing.assert_allclose(probabilities_of(rows), expected, atol=6e-5)
    assert rows[["x", "y", "width", "height"]].drop_duplicates().to_numpy().tolist() == [[0, 0, 48, 48]]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_box_of_a_rotated_photo_is_that_of_the_upright_one(name: str, predict: Predict, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(100, 160, (80, 50, 50))).save(tmp_path / name, exif=exif)  # shown as 100 by 160
    assert predict(name, "--detector=none", "--annotate", "--out=out").code == 0
    row = rows_of(tmp_path / "out").iloc[0]
    assert (row.x, row.y, row.width, row.height) == (0, 30, 100, 100)
    (path,) = (tmp_path / "out/annotated").iterdir()
    with Image.open(path) as copy:
        assert copy.width < copy.height


def test_orientation_that_is_no_number_does_not_stop_the_job(predict: Predict, tmp_path: Path) -> None:
    entry = struct.pack("<HHI4s", 0x0112, 2, 2, b"6")  # ASCII
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    Image.fromarray(photo(100, 160, (80, 50, 50))).save(tmp_path / "a.jpg", exif=exif)
    ended = predict("a.jpg", "--detector=none", "--out=out")
    assert (ended.code, ended.err) == (0, "")
    row = rows_of(tmp_path / "out").iloc[0]
    assert (row.x, row.y, row.width, row.height) == (30, 0, 100, 100)


def test_several_models_are_averaged(
    predict: Predict, faces: Path, run: Path, other_run: Path, test_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    assert predict(faces, "--detector=none", "--out=out", models=(run, other_run)).code == 0
    each = [load_model(one, accelerator="cpu").logits(test_images[:10]).softmax(1).numpy() for one in (run, other_run)]
    expected = tempered(np.mean(each, 0), run, other_run)
    np.testing.assert_allclose(probabilities_of(rows_of(tmp_path / "out")), expected, atol=6e-5)


def test_views_of_test_time_augmentation_are_averaged(
    predict: Predict, faces: Path, run: Path, test_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    assert predict(faces, "--detector=none", "--tta=flip", "--out=out", models=(run,)).code == 0
    predictor = load_model(run, accelerator="cpu")
    views = [predictor.logits(view).softmax(1).numpy() for view in (test_images[:10], test_images[:10, :, ::-1])]
    expected = tempered(np.mean(views, 0), run)
    np.testing.assert_allclose(probabilities_of(rows_of(tmp_path / "out")), expected, atol=6e-5)


def test_one_unreadable_file_among_many_is_reported_last(
    predict: Predict, faces: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(predicting, "PHOTOS", 4)
    (faces / "3.png").write_bytes((faces / "3.png").read_bytes()[:200])
    ended = predict(faces, "--detector=none", "--out=out")
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ") and "3.png" in line and "damaged" in line
    rows = rows_of(tmp_path / "out")
    assert rows["note"].tolist() == ["unreadable" if i == 3 else "" for i in range(10)]
    assert np.isfinite(probabilities_of(rows)[[i for i in range(10) if i != 3]]).all()
    again = predict(faces, "--detector=none", "--out=out", "--resume")
    assert again.code == 1 and again.err.splitlines()[-1] == line


def test_no_face_in_anything_is_a_row_and_a_hint(predict: Predict, tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (90, 60), "grey").save(tmp_path / f"{name}.png")
    ended = predict("a.png", "b.png", "--detector=haar", "--out=out")
    assert ended.code == 0
    assert (
        ended.err
        == "no face was found: try --detector blaze (after `fer-lightning download blaze`), or --detector none if each "
        "image is a face\n"
    )
    assert rows_of(tmp_path / "out")["note"].tolist() == ["no face"] * 2


# ---------------------------------------------------------------- videos and copies


def test_face_of_a_video_has_one_track(predict: Predict, film: Path, tmp_path: Path) -> None:
    assert predict(film, "--detector=haar", "--every=0.2", "--out=out").code == 0
    rows = rows_of(tmp_path / "out")
    assert rows["frame"].tolist() == [0, 2, 4, 6, 8, 10]
    np.testing.assert_allclose(rows["time"], rows["frame"] / 10, atol=1e-3)
    assert set(rows["face"]) == {1}
    assert rows["x"].is_monotonic_increasing and 20 < rows["x"].iloc[-1] - rows["x"].iloc[0] < 40


def test_annotated_copies_lie_beside_the_table(predict: Predict, group: Path, film: Path, tmp_path: Path) -> None:
    before = group.read_bytes(), film.read_bytes()
    assert predict(group, film, "--annotate", "--detector=haar", "--every=0.2", "--out=out").code == 0
    assert sorted(path.name for path in (tmp_path / "out/annotated").iterdir()) == ["film.mp4", "group.png"]
    assert (group.read_bytes(), film.read_bytes()) == before
    changed = (np.asarray(Image.open(tmp_path / "out/annotated/group.png")) != np.asarray(Image.open(group))).any(2)
    for row in rows_of(tmp_path / "out")[:2].itertuples():
        assert changed[int(row.y) + 1, int(row.x) : int(row.x + row.width)].mean() > 0.3  # dashed if unsure
        assert not changed[int(row.y + row.height / 2), int(row.x + row.width / 2)]
    assert [frame.seconds for frame in frames(tmp_path / "out/annotated/film.mp4")] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-3
    )


def test_file_that_no_copy_can_be_made_of_does_not_stop_the_rest(
    predict: Predict, faces: Path, film: Path, tmp_path: Path
) -> None:
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:900])
    ended = predict("cut.mp4", faces / "1.png", "--annotate", "--detector=none", "--out=out")
    assert ended.code == 1 and len(ended.err.splitlines()) == 1 and "cut.mp4" in ended.err
    assert rows_of(tmp_path / "out")["note"].tolist() == ["unreadable", ""]
    assert [path.name for path in (tmp_path / "out/annotated").iterdir()] == ["1.png"]


def test_copy_of_every_frame_plays_as_fast_as_the_video(predict: Predict, film: Path, tmp_path: Path) -> None:
    assert predict(film, "--annotate", "--every=0.01", "--detector=none", "--out=out").code == 0
    copied, original = list(frames(tmp_path / "out/annotated/film.mp4")), list(frames(film))
    assert [frame.seconds for frame in copied] == pytest.approx([frame.seconds for frame in original], abs=1e-3)


def test_rows_are_kept_where_the_copy_of_a_video_fails(
    predict: Predict, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: VideoWriter, image: object) -> None:
        raise UserError(f"{self.path} cannot be written (disk full); choose another folder with --out")

    monkeypatch.setattr(VideoWriter, "write", full)
    ended = predict(film, "--annotate", "--every=0", "--detector=none", "--out=out")
    assert ended.code == 1 and ended.err.count("cannot be written") == 1
    rows = rows_of(tmp_path / "out")
    assert rows["frame"].tolist() == list(range(12)) and rows["label"].notna().all()


# ---------------------------------------------------------------- killed jobs


def killed(arguments: Sequence[str], adds: int, save_every: float) -> None:
    """Run the command in a process that is killed after so many additions to its table."""
    predicting.PHOTOS, table.SAVE_EVERY = 4, save_every
    add, left = table.PredictionTable.add, iter(range(adds - 1, -1, -1))

    def add_and_die(*given: object, **more: object) -> None:
        add(*given, **more)  # type: ignore[arg-type]
        if not next(left):
            os.kill(os.getpid(), signal.SIGKILL)

    table.PredictionTable.add = add_and_die  # type: ignore[method-assign]
    from fer_lightning.cli import app

    sys.argv = list(arguments)
    app()


def test_killed_job_resumes_to_the_same_table(
    predict: Predict, faces: Path, film: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (faces / "2.png").write_bytes(b"")
    film.rename(faces / "5.mp4")  # between the photos
    settings = ("--detector=haar", "--every=0", "--out")
    monkeypatch.setattr(predicting, "PHOTOS", 4)
    whole = predict("faces", *settings, "whole")
    # In the photos; with rows that the progress does not know; in the video; in the photos that follow.
    for adds, save_every in ((1, 0), (2, 3600), (2, 0), (2, 0)):
        arguments = arguments_of(("faces", *settings, "killed", "--resume"), (model_file,))
        assert processes  # which has the server of processes import torch first
        process = multiprocessing.get_context("forkserver").Process(target=killed, args=(arguments, adds, save_every))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    progress = json.loads((tmp_path / "killed/progress.json").read_text())
    assert 0 < progress["next_input"] < 11 and not progress["finished"]
    resumed = predict("faces", *settings, "killed", "--resume")
    assert (tmp_path / "killed/predictions.csv").read_bytes() == (tmp_path / "whole/predictions.csv").read_bytes()
    assert resumed.code == whole.code == 1 and resumed.err == whole.err
    finished = predict("faces", *settings, "killed", "--resume")
    assert finished.code == 1 and "nothing to do" in finished.err


def test_job_of_other_inputs_is_not_resumed(predict: Predict, faces: Path, tmp_path: Path) -> None:
    assert predict(faces, "--detector=none", "--out=out").code == 0
    before = (tmp_path / "out/predictions.csv").read_bytes()
    for more in ((), ("--resume", "--detector=haar")):
        ended = predict(faces, "--detector=none", "--out=out", *more)
        assert ended.code == 1 and len(ended.err.splitlines()) == 1 and "--out" in ended.err
    assert (tmp_path / "out/predictions.csv").read_bytes() == before


def test_results_below_the_inputs_are_no_inputs(predict: Predict, faces: Path, tmp_path: Path) -> None:
    settings = ("--detector=none", "--out=faces/results", "--annotate")
    assert predict("faces", *settings).code == 0
    assert (faces / "results/annotated/0.png").is_file()
    again = predict("faces", *settings, "--resume")
    assert again.code == 0 and "nothing to do" in again.err
    assert len(rows_of(faces / "results")) == 10


def test_copies_are_no_inputs_of_a_pattern_that_is_resumed(predict: Predict, faces: Path, tmp_path: Path) -> None:
    settings = ("**/*.png", "--detector=none", "--out=faces/results", "--annotate")
    assert predict(*settings).code == 0
    again = predict(*settings, "--resume")
    assert again.code == 0 and "nothing to do" in again.err


def test_camera_that_is_missing_leaves_no_table(predict: Predict, tmp_path: Path) -> None:
    for _ in range(2):
        ended = predict("--camera=77", "--detector=none", "--out=out")
        assert ended.code == 1 and "camera 77: there is none" in ended.err


def test_detector_of_ones_own_may_lie_at_home(
    predict: Predict, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
    (tmp_path / "own.xml").write_bytes(own.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert predict("faces/1.png", "--detector=~/own.xml", "--out=out").code == 0


# ---------------------------------------------------------------- bad input


def text(folder: Path) -> str:
    (folder / "notes.txt").write_text("hello\n")
    return "notes.txt"


def truncated_video(folder: Path) -> str:
    path = write_video(folder / "v.avi", codec="MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "v.avi"


def no_image(folder: Path) -> str:
    (folder / "empty").mkdir()
    return "empty"


def panorama(folder: Path) -> str:
    Image.new("1", (50_000, 2_000)).save(folder / "wide.png")
    return "wide.png"


def newline(folder: Path) -> str:
    (folder / "a\nb.jpg").write_bytes(b"no image")
    return "a\nb.jpg"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "notes.txt is neither an image nor a video"),
        (truncated_video, "v.avi is truncated or damaged: nothing can be read after frame"),
        (no_image, "empty: no image or video in this folder"),
        (panorama, "wide.png has more than 64,000,000 pixels"),
        (newline, r"a\nb.jpg is"),
        (lambda _: "--camera=77", "camera 77: there is none"),
        (lambda _: "nowhere.jpg", "nowhere.jpg: no such file or folder"),
        (lambda _: "*.gif", "*.gif: no image or video matches this pattern"),
        (lambda _: "--tta=none", "name photos, videos or folders, or a camera with --camera 0"),
    ],
    ids=["text", "truncated", "folder", "panorama", "newline", "camera", "missing", "pattern", "nothing"],
)
def test_bad_input_is_one_line(make: Callable[[Path], str], message: str, predict: Predict, tmp_path: Path) -> None:
    ended = predict(make(tmp_path), "--detector=haar")
    (line,) = ended.err.splitlines()
    assert ended.code == 1 and line.startswith("error: ") and message in line, ended


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--out=faces/1.png",), "faces/1.png is a file: choose another folder with --out"),
        (("--annotate",), "--annotate needs a folder: name it with --out"),
        (("--resume",), "--resume needs a folder: name it with --out"),
        (("--every=-1",), "--every -1.0: use a number of seconds"),
        (("--detector=mtcnn",), "detector 'mtcnn': no such file"),
        (("--detector=~nobody-of-that-name/own.xml",), "own.xml cannot be read (Could not determine home directory"),
        (("--accelerator=tpu",), "--accelerator tpu: use auto, cpu or gpu"),
        (("--tta=five_crop",), "--tta five_crop: use none, flip, ten_crop"),
        (("--camera=0",), "name photos, videos or folders, or a camera"),
    ],
    ids=str,
)
def test_bad_settings_are_one_line(settings: Sequence[str], message: str, predict: Predict, faces: Path) -> None:
    ended = predict(faces, "--detector=none", *settings)
    (line,) = ended.err.splitlines()
    assert ended.code == 1 and line.startswith("error: ") and message in line


def test_bad_models_are_one_line(
    predict: Predict, faces: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    description, networks = modelfile.read(model_file)
    others = description.model_copy(update={"classes": description.classes[::-1]})
    modelfile.write(tmp_path / "others.safetensors", others, modelfile.pack(networks, "fp16"))
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    (tmp_path / "weights.pt").write_bytes(b"PK")
    for models, message in (
        ([model_file, tmp_path / "others.safetensors"], "only models of the same classes"),
        ([tmp_path / "foreign.safetensors"], "not one that `fer-lightning export` wrote"),
        ([tmp_path / "weights.pt"], "neither a run folder nor"),
        ([tmp_path], "config.yaml"),
        ([Path("x" * 300)], "cannot be read (File name too long); name another file"),
        ([Path("resnet50")], "neither a run folder or model file, nor a model of this package"),
    ):
        ended = predict(faces, "--detector=none", models=models)
        (line,) = ended.err.splitlines()
        assert ended.code == 1 and line.startswith("error: ") and message in line, ended


def test_graph_of_another_project_is_one_line(predict: Predict, faces: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 48])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [value],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 48])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "other.onnx")
    ended = predict(faces, "--detector=none", models=[tmp_path / "other.onnx"])
    (line,) = ended.err.splitlines()
    assert ended.code == 1 and line.startswith("error: ") and "other.onnx" in line


# ---------------------------------------------------------------- the command as a process


def test_command_imports_neither_lightning_nor_hydra(
    group: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    script = (
        "import sys\nfrom fer_lightning.cli import app\ntry:\n    app()\nexcept SystemExit as end:\n"
        "    heavy = {'lightning', 'hydra', 'omegaconf', 'pandas', 'matplotlib', 'scipy', 'torch._dynamo'}\n"
        "    heavy &= set(sys.modules)\n"
        "    print(end.code, *sorted(heavy), file=sys.stderr)\n"
    )
    arguments = arguments_of((group, "--detector=haar"), (model_file,))[1:]
    ended = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert ended.stderr == "0\n" and "group.png" in ended.stdout


# ---------------------------------------------------------------- FER-2013


@pytest.mark.real_data
def test_faces_of_private_test_are_predicted_as_they_are_evaluated(
    predict: Predict, model_file: Path, fer2013_dir: Path, tmp_path: Path
) -> None:
    """Image by image, from PNG files and from the data set itself."""
    data = sources.load(fer2013_dir / "fer2013.csv.gz")
    private = data.rows("private")
    evaluate(model_file, data=str(fer2013_dir / "fer2013.csv.gz"), split="private", out=tmp_path / "e")
    evaluated = pd.read_csv(tmp_path / "e/report/predictions.csv")
    chosen = np.arange(0, len(private), 18)
    (tmp_path / "png").mkdir()
    for i in chosen:
        Image.fromarray(data.images[private[i]]).save(tmp_path / f"png/{i:04}.png")
    assert predict("png", "--detector=none", "--out=p").code == 0
    predicted = rows_of(tmp_path / "p")
    assert len(predicted) == len(chosen) == 200
    expected = tempered(probabilities_of(evaluated)[chosen], model_file)
    np.testing.assert_allclose(probabilities_of(predicted), expected, atol=1e-4)
    assert predicted["label"].tolist() == evaluated["prediction"].to_numpy()[chosen].tolist()
