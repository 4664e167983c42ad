"""The crop rules, measured again on FER-2013."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_lightning.data.readers import sources
from fer_lightning.inference.faces.choose import load_detector
from fer_lightning.inference.faces.frame import frame


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(("name", "found"), [("haar", 0.65), ("blaze", 0.8)])
def test_frames_that_are_found_are_those_of_fer2013(
    name: str, found: float, fer2013_dir: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In median over PrivateTest images enlarged to 96 pixels and padded by replication."""
    detector = load_detector(str(request.getfixturevalue("blaze_file")) if name == "blaze" else name)[0]
    table = sources.load(fer2013_dir / "fer2013.csv.gz", cache_dir=tmp_path)
    images, frames = table.images[table.rows("private")][::12], []
    for image in images:
        grey = cv2.copyMakeBorder(
            cv2.resize(image, (96, 96), interpolation=cv2.INTER_CUBIC), 48, 48, 48, 48, cv2.BORDER_REPLICATE
        )
        if faces := detector(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)):
            frames.append(frame(faces[0], detector.rule))
    left, top, side = np.median(np.array(frames), 0)
    assert len(frames) > found * len(images)
    assert side == pytest.approx(96, abs=4)
    assert (left + side / 2, top + side / 2) == pytest.approx((96, 96), abs=3)
