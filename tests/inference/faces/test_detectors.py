"""Detectors find drawn faces where they are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fer_lightning.errors import UserError
from fer_lightning.inference.faces.choose import load_detector
from fer_lightning.inference.faces.detector import RULES, Detector
from fer_lightning.inference.faces.download import cached_path, download
from fer_lightning.inference.faces.frame import CropRule, Face, crop, frame, turn
from tests.inference.faces.pictures import drawn_face, photo

CASCADE = Path(cv2.data.haarcascades, "haarcascade_frontalface_default.xml")

WHERE = ((200, 180, 140), (460, 300, 80), (90, 390, 60))
"""Centre and side of three drawn faces, the largest first."""


@pytest.fixture(params=["haar", pytest.param("blaze", marks=pytest.mark.slow)])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "blaze":
        download("blaze", source=request.getfixturevalue("blaze_file"))
    return load_detector(request.param)[0]


def assert_found(faces: list[Face], *where: tuple[int, int, int]) -> None:
    assert len(faces) == len(where), faces
    for face, (x, y, side) in zip(faces, where, strict=True):
        assert face.x + face.width / 2 == pytest.approx(x, abs=0.1 * side)
        assert face.y + face.height / 2 == pytest.approx(y, abs=0.2 * side)
        assert 0.7 * side < face.width < 1.2 * side


def test_faces_are_found_the_largest_first(detector: Detector) -> None:
    assert_found(detector(photo(480, 640, *WHERE)), *WHERE)
    assert_found(detector(photo(480, 640, *WHERE[::-1])), *WHERE)


@pytest.mark.parametrize(("height", "width"), [(3000, 4000), (4000, 3000)])
def test_boxes_are_in_pixels_of_a_large_image(height: int, width: int, detector: Detector) -> None:
    where = ((1500, 1200, 800), (700, 2400, 320))
    image = photo(height, width, *where)
    started = time.perf_counter()
    assert_found(detector(image), *where)
    assert time.perf_counter() - started < 30  # at its own size it would take minutes


def test_an_image_without_a_face_gives_none(detector: Detector) -> None:
    for shape in ((480, 640), (1, 1), (1, 700), (5000, 3), (24, 24)):
        assert detector(np.full((*shape, 3), 120, np.uint8)) == []


def test_boxes_move_with_the_face(detector: Detector) -> None:
    frames = [frame(detector(photo(400, 400, (x, 200, 120)))[0], detector.rule) for x in (180, 220)]
    assert frames[1][0] - frames[0][0] == pytest.approx(40, abs=8)
    assert frames[1][1:] == pytest.approx(frames[0][1:], abs=10)


def test_crops_of_all_sizes_agree(detector: Detector) -> None:
    crops = []
    for side in (100, 200, 400):
        image = drawn_face(side)
        crops.append(crop(image, detector(image)[0], detector.rule).astype(float))
    for other in crops[1:]:
        assert np.abs(other - crops[0]).mean() < 12


def test_threads_may_share_a_detector(detector: Detector) -> None:
    images = [photo(300, 400, (60 + 9 * i, 150, 50)) for i in range(24)]
    expected = [detector(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(detector, images)) == expected


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ],
)
def test_other_arrays_than_rgb_images_raise_value_error(image: NDArray[np.uint8]) -> None:
    for name in ("haar", "none"):
        with pytest.raises(ValueError, match="uint8 of shape"):
            load_detector(name)[0](image)


def test_none_takes_the_middle_of_the_image() -> None:
    assert load_detector("none")[0](np.zeros((60, 101, 3), np.uint8)) == [Face(20.5, 0, 60, 60, 1.0)]


@pytest.mark.slow
def test_landmarks_of_blaze_lie_on_the_drawn_features(blaze_file: Path) -> None:
    (face,) = load_detector(str(blaze_file))[0](drawn_face(160))
    right_eye, left_eye, nose, mouth, right_ear, left_ear = face.landmarks
    expected = {right_eye: (134, 152), left_eye: (186, 152), nose: (160, 182), mouth: (160, 210)}
    for found, place in expected.items():
        assert found == pytest.approx(place, abs=8)
    assert right_ear[0] < right_eye[0] and left_ear[0] > left_eye[0]
    assert abs(turn(face)) < 0.1
    assert 0.5 < face.score <= 1


@pytest.mark.slow
def test_fast_blaze_misses_the_small_faces_of_large_images(blaze_file: Path) -> None:
    where = tuple((x, y, 60) for y in (200, 700) for x in (150, 500, 900, 1150))
    image = photo(960, 1280, *where)
    assert len(load_detector(str(blaze_file))[0](image)) == len(where)
    assert len(load_detector(str(blaze_file), fast=True)[0](image)) < len(where)


@pytest.mark.slow
def test_a_face_across_parts_is_found_once(blaze_file: Path) -> None:
    detector = load_detector(str(blaze_file))[0]
    for x in range(200, 1100, 75):
        for side in (90, 180):
            assert_found(detector(photo(700, 1280, (x, 350, side))), (x, 350, side))


@pytest.mark.slow
def test_faces_of_a_panorama_are_found(blaze_file: Path) -> None:
    where = ((700, 300, 200), (4000, 300, 200), (7500, 300, 200))
    faces = load_detector(str(blaze_file))[0](photo(600, 8000, *where))
    assert_found(sorted(faces, key=lambda face: face.x), *where)


def test_rules_are_those_of_the_detectors() -> None:
    assert RULES["haar"] == CropRule(1.02, 0.0) and RULES["blaze"] == CropRule(1.14, -0.04)
    assert load_detector("haar")[0].rule == RULES["haar"]


def test_auto_takes_haar_and_says_how_to_get_blaze() -> None:
    detector, hint = load_detector("auto")
    assert detector.name == "haar"
    assert hint is not None and "fer-lightning download blaze" in hint and "\n" not in hint
    assert load_detector("haar")[1] is None


@pytest.mark.slow
def test_auto_takes_blaze_if_it_is_there(blaze_file: Path) -> None:
    download("blaze", source=blaze_file)
    detector, hint = load_detector("auto")
    assert (detector.name, hint) == ("blaze", None)


def test_blaze_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="fer-lightning download blaze"):
        load_detector("blaze")


def test_damaged_blaze_is_not_used() -> None:
    cached_path().parent.mkdir(parents=True)
    cached_path().write_bytes(b"TFL3")
    for name in ("blaze", "auto"):
        with pytest.raises(UserError, match=r"is damaged: run `fer-lightning download blaze`"):
            load_detector(name)


def test_own_cascade_by_path(tmp_path: Path) -> None:
    path = tmp_path / "own faces.XML"
    path.write_bytes(CASCADE.read_bytes())
    assert_found(load_detector(str(path))[0](photo(480, 640, *WHERE)), *WHERE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.xml", None, "no such file; use auto, blaze, haar, none"),
        ("mtcnn", None, "detector 'mtcnn': no such file"),
        ("", None, "no such file"),
        ("face.pt", b"x", "use a cascade of OpenCV"),
        ("empty.xml", b"", "is not a cascade"),
        ("text.xml", b"hello\n", "is not a cascade"),
        ("other.xml", b"<?xml version='1.0'?><opencv_storage><a>1</a></opencv_storage>", "is not a cascade"),
        ("cut.xml", CASCADE.read_bytes()[:200_000], "is not a cascade"),
        ("empty.tflite", b"", "is not a network"),
        ("text.tflite", b"hello\n" * 99, "is not a network"),
    ],
)
def test_a_wrong_file_is_one_line(
    name: str, content: bytes | None, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_detector(str(path) if "." in name else name)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_damaged_and_other_networks_are_one_line(blaze_file: Path, tmp_path: Path) -> None:
    data, path = blaze_file.read_bytes(), tmp_path / "other.tflite"
    others = [data[:1000], data[:500_000]]
    others += [file.read_bytes() for file in blaze_file.parent.glob("*.tflite") if file != blaze_file]
    for other in others:
        path.write_bytes(other)
        with pytest.raises(UserError, match="BlazeFace full-range"):
            load_detector(str(path))


def test_neither_torch_nor_lightning_nor_hydra_is_imported() -> None:
    code = (
        "import sys, numpy; from fer_lightning.inference.faces.choose import load_detector\n"
        "load_detector('none'); assert 'cv2' not in sys.modules\n"
        "load_detector('auto')[0](numpy.zeros((99, 99, 3), 'uint8'))\n"
        "assert not {'torch', 'lightning', 'hydra', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
