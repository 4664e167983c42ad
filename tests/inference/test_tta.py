"""Test-time augmentation."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fer_lightning import load_model
from fer_lightning.errors import UserError
from fer_lightning.inference.tta import views


def faces(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_flip_is_the_face_and_its_mirror_image() -> None:
    plain, mirrored = views(faces(), "flip")
    np.testing.assert_array_equal(plain, faces())
    np.testing.assert_array_equal(mirrored, faces().numpy()[:, :, ::-1])


def test_ten_crops_equal_those_of_opencv() -> None:
    crops = list(views(faces(1), "ten_crop"))
    face = faces(1)[0].numpy()
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    for (top, left), plain, mirrored in zip(corners, crops[::2], crops[1::2], strict=True):
        expected = cv2.resize(face[top : top + 44, left : left + 44], (48, 48), interpolation=cv2.INTER_LINEAR)
        assert np.abs(plain[0].numpy().astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(mirrored[0], plain[0].numpy()[:, ::-1])


@pytest.mark.parametrize(("tta", "n"), [("none", 1), ("flip", 2), ("ten_crop", 10)])
def test_probabilities_of_views_are_averaged(tta: str, n: int, run: Path, test_images: NDArray[np.uint8]) -> None:
    plain = load_model(run, accelerator="cpu")
    given = torch.from_numpy(np.asarray(load_model(run, accelerator="cpu", tta=tta).logits(test_images))).softmax(1)
    each = [plain.logits(view.numpy()).softmax(1) for view in views(torch.from_numpy(np.array(test_images)), tta)]  # type: ignore[arg-type]
    assert len(each) == n
    torch.testing.assert_close(given, torch.stack(each).mean(0))


def test_unknown_augmentation_is_one_line(run: Path) -> None:
    with pytest.raises(UserError, match=r"--tta mirror: use none, flip, ten_crop"):
        load_model(run, tta="mirror")
