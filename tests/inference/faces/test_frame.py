"""From a detector's box to the frame of FER-2013."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fer_lightning.data.readers.images import decode
from fer_lightning.inference.faces.choose import load_detector
from fer_lightning.inference.faces.frame import CropRule, Face, concerns, crop, frame, turn

AS_FOUND = CropRule()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    red, green = 127 + 120 * np.sin(rows / 17), 127 + 120 * np.cos(columns / 13)
    return np.stack([red, green, (red + green) / 2], 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width"), [(48, 48), (47, 49), (96, 96), (30, 30), (101, 60), (60, 101), (7, 300), (480, 641), (1, 1)]
)
def test_without_a_detector_crops_equal_what_the_reader_decodes(height: int, width: int) -> None:
    image = noise(height, width, seed=height)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    detector, _ = load_detector("none")
    (face,) = detector(image)
    np.testing.assert_array_equal(crop(image, face, detector.rule), decode(file.getvalue(), "face.png")[0])
    assert concerns(image, face, detector.rule) == (("small",) if min(height, width) < 40 else ())


def test_grey_images_of_48_pixels_are_not_changed() -> None:
    grey = noise(48, 48)[..., 0]
    (face,) = load_detector("none")[0](np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(crop(grey, face, AS_FOUND), grey)
    np.testing.assert_array_equal(crop(np.repeat(grey[..., None], 3, 2), face, AS_FOUND), grey)


def test_frame_follows_from_the_box() -> None:
    face = Face(100, 200, 40, 60, 1)
    assert frame(face, AS_FOUND) == (95, 205, 50)
    assert frame(face, CropRule(side=1.2, shift=-0.1)) == pytest.approx((90, 194, 60))


def test_grey_is_the_luma_of_bt_601() -> None:
    image = noise(48, 48)
    expected = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(crop(image, Face(0, 0, 48, 48, 1), AS_FOUND) - expected).max() <= 1


def test_crop_within_an_image_takes_the_pixels_of_the_frame() -> None:
    image = noise(200, 300)
    expected = crop(np.ascontiguousarray(image[70:118, 33:81]), Face(0, 0, 48, 48, 1), AS_FOUND)
    np.testing.assert_array_equal(crop(image, Face(33, 70, 48, 48, 1), AS_FOUND), expected)


@pytest.mark.parametrize("size", [24, 48, 64])
@pytest.mark.parametrize(("left", "top", "side"), [(10, 5, 110), (37, 37, 150), (150, 20, 250)])
def test_beyond_the_image_its_edge_is_repeated(left: int, top: int, side: int, size: int) -> None:
    """Against torch's antialiased bicubic filter on an image that numpy has padded."""
    image = smooth(80, 90)
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    padded = np.pad(grey, ((top, side - 80 - top), (left, side - 90 - left)), mode="edge")
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(padded)[None, None], (size, size), mode="bicubic", antialias=True
    )
    found = crop(image, Face(-left, -top, side, side, 1), AS_FOUND, size)
    assert found.shape == (size, size) and found.dtype == np.uint8
    assert np.abs(found - expected[0, 0].numpy().clip(0, 255)).max() <= 1.5


def test_shrinking_averages() -> None:
    checkerboard = np.repeat((np.indices((960, 960)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    found = crop(checkerboard, Face(100.3, 90.1, 700, 700, 1), AS_FOUND)
    assert found.min() >= 118 and found.max() <= 137


def test_a_frame_outside_of_the_image_repeats_its_edge() -> None:
    image = np.full((20, 20, 3), 77, np.uint8)
    np.testing.assert_array_equal(crop(image, Face(500, -90, 48, 48, 1), AS_FOUND), 77)


def test_fractions_of_pixels_count() -> None:
    ramp = np.repeat(np.tile(np.arange(0, 200, 2, dtype=np.uint8), (100, 1))[..., None], 3, 2)
    means = [crop(ramp, Face(20 + shift, 20, 48, 48, 1), AS_FOUND).mean() for shift in (0, 0.5, 1)]
    assert np.diff(means) == pytest.approx([1, 1], abs=0.05)


LANDMARKS = ((40.0, 40.0), (60.0, 40.0), (50.0, 52.0), (50.0, 60.0), (32.0, 44.0), (68.0, 44.0))


def moved(nose: float, degrees: float = 0.0) -> Face:
    """A frontal face with its nose moved to the right, in halves of the distance between its ears, and then rolled."""
    points = np.array(LANDMARKS)
    points[2, 0] += 18 * nose
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return Face(30, 30, 60, 60, 1, tuple((float(x), float(y)) for x, y in (points - 50) @ rotation + 50))


@pytest.mark.parametrize("nose", [0, 0.4, -0.4, 1.2, -1.2])
def test_turn_is_where_the_nose_lies_between_the_ears(nose: float) -> None:
    assert turn(moved(nose)) == pytest.approx(nose)
    assert turn(Face(0, 0, 60, 60, 1)) == 0


def test_a_tilted_head_is_not_turned() -> None:
    for degrees in (-40, 25, 90):
        assert turn(moved(0, degrees)) == pytest.approx(0, abs=1e-9)
        assert turn(moved(1.1, degrees)) == pytest.approx(1.1)


def test_coinciding_landmarks_are_no_error() -> None:
    assert np.isfinite(turn(Face(0, 0, 60, 60, 1, ((5.0, 5.0),) * 6)))


@pytest.mark.parametrize(
    ("face", "expected"),
    [
        (Face(50, 50, 60, 60, 1), ()),
        (Face(50, 50, 39, 39, 1), ("small",)),
        (Face(-3, 50, 60, 60, 1), ()),
        (Face(-7, 50, 60, 60, 1), ("cut",)),
        (Face(50, 147, 60, 60, 1), ("cut",)),
        (Face(-4, -4, 60, 60, 1), ("cut",)),
        (Face(-300, 50, 30, 30, 1), ("small", "cut")),
        (moved(0.8), ()),
        (moved(1.0), ("turned",)),
        (moved(-1.0), ("turned",)),
    ],
)
def test_concerns(face: Face, expected: tuple[str, ...]) -> None:
    assert concerns(noise(200, 200), face, AS_FOUND) == expected


def test_concerns_are_those_of_the_frame() -> None:
    image, face = noise(200, 200), Face(5, 50, 36, 36, 1)
    assert concerns(image, face, AS_FOUND) == ("small",)
    assert concerns(image, face, CropRule(side=1.2)) == ()
    assert concerns(image, replace(face, x=0), CropRule(side=1.5)) == ("cut",)
