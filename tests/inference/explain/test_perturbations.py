"""What each perturbation does to a face."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fer_lightning.data.synthetic import synthetic
from fer_lightning.inference.explain import perturbations
from fer_lightning.inference.explain.perturbations import PERTURBATIONS, Perturbation, perturbed


@pytest.fixture(scope="module")
def face() -> NDArray[np.uint8]:
    return np.asarray(synthetic(n_train=7, n_val=7, n_test=7).images[3])


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda p: p.name)
def test_neutral_level_leaves_the_face_as_it_is(perturbation: Perturbation, face: NDArray[np.uint8]) -> None:
    if perturbation.neutral is None:  # no JPEG is without loss
        difference = perturbation.apply(face, 100).astype(int) - face
        assert np.abs(difference).max() <= 3
    else:
        assert perturbation.neutral not in perturbation.levels
        np.testing.assert_array_equal(perturbation.apply(face, perturbation.neutral), face)


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda p: p.name)
def test_every_level_changes_faces_and_keeps_their_shape(perturbation: Perturbation, face: NDArray[np.uint8]) -> None:
    faces, before = np.stack([face, face[:, ::-1]]), face.copy()
    assert list(perturbation.levels) == sorted(perturbation.levels)
    for level in perturbation.levels:
        changed = perturbed(faces, perturbation, level)
        assert changed.shape == faces.shape and changed.dtype == np.uint8
        assert (changed != faces).any((1, 2)).all()
    np.testing.assert_array_equal(face, before)


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda p: p.name)
def test_stronger_levels_change_a_face_more(perturbation: Perturbation, face: NDArray[np.uint8]) -> None:
    neutral = perturbation.levels[-1] if perturbation.neutral is None else perturbation.neutral
    for side in (-1, 1):
        levels = sorted((v for v in perturbation.levels if (v - neutral) * side > 0), key=lambda v: abs(v - neutral))
        changes = [np.abs(perturbation.apply(face, level).astype(int) - face).mean() for level in levels]
        assert changes == sorted(changes)


def test_shift_moves_pixels_and_repeats_the_edge(face: NDArray[np.uint8]) -> None:
    right, down = perturbations.shift_right(face, 4), perturbations.shift_down(face, -4)
    np.testing.assert_array_equal(right[:, :44], face[:, 4:])
    np.testing.assert_array_equal(right[:, 44:], np.repeat(face[:, -1:], 4, axis=1))
    np.testing.assert_array_equal(down[4:], face[:44])
    np.testing.assert_array_equal(down[:4], np.repeat(face[:1], 4, axis=0))


def test_crop_scale_is_that_of_the_frame(face: NDArray[np.uint8]) -> None:
    middle = Image.fromarray(face).resize((48, 48), Image.Resampling.BICUBIC, box=(12, 12, 36, 36))
    np.testing.assert_array_equal(perturbations.crop_scale(face, 0.5), np.asarray(middle))
    padded = Image.fromarray(np.pad(face, 24, mode="edge")).resize((48, 48), Image.Resampling.BICUBIC)
    difference = perturbations.crop_scale(face, 2).astype(int) - np.asarray(padded)
    assert np.abs(difference[1:-1, 1:-1]).max() <= 1  # rounding; the outermost pixels know more of the edge


def test_rotation_is_anticlockwise(face: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(perturbations.rotate(face, 90), np.rot90(face))


def test_brightness_and_contrast_are_factors(face: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(perturbations.brightness(face, 2), np.minimum(face.astype(int) * 2, 255))
    np.testing.assert_array_equal(perturbations.contrast(face, 0), np.full_like(face, round(face.mean())))
    flatter = perturbations.contrast(face, 0.5)
    assert flatter.mean() == pytest.approx(face.mean(), abs=0.5)
    assert flatter.std() == pytest.approx(face.std() / 2, rel=0.02)


def test_blur_has_the_standard_deviation_that_it_says() -> None:
    point = np.zeros((48, 48), np.uint8)
    point[20:28, 20:28] = 255
    blurred = perturbations.blur(point, 2).astype(float)
    x = np.arange(48)
    weights, before = blurred.sum(0) / blurred.sum(), point.sum(0) / point.sum()
    variance = [w @ x**2 - (w @ x) ** 2 for w in (weights, before)]
    assert variance[0] - variance[1] == pytest.approx(4, rel=0.05)


def test_small_face_is_scaled_down_and_up_again(face: NDArray[np.uint8]) -> None:
    small = Image.fromarray(face).resize((12, 12), Image.Resampling.BICUBIC)
    expected = np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(perturbations.face_size(face, 12), expected)


def test_jpeg_is_what_pillow_makes_of_it(face: NDArray[np.uint8]) -> None:
    import io

    buffer = io.BytesIO()
    Image.fromarray(face).save(buffer, "JPEG", quality=10)
    expected = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs(perturbations.jpeg(face, 10) - expected).mean() < 1
