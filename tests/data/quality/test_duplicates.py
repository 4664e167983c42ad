"""Near-duplicates: planted pairs are found, and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fer_lightning.data.quality import duplicates
from fer_lightning.data.readers.sources import load
from fer_lightning.data.synthetic import synthetic
from fer_lightning.data.table import FaceTable

Image = NDArray[np.uint8]


def darker(image: Image) -> Image:
    return np.clip(0.6 * image.astype(float) - 10, 0, 255).astype(np.uint8)


def saved_as_jpeg(image: Image) -> Image:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE)


def moved(image: Image) -> Image:
    return np.roll(np.pad(image, 4, mode="edge"), (3, -2), axis=(0, 1))[4:-4, 4:-4]


def mirrored(image: Image) -> Image:
    return image[:, ::-1]


def watermarked(image: Image) -> Image:
    written = cv2.putText(image.copy(), "STOCK", (6, 32), cv2.FONT_HERSHEY_SIMPLEX, 0.35, 255, 1)
    return cv2.addWeighted(written, 0.25, image, 0.75, 0)


CHANGES = (darker, saved_as_jpeg, moved, mirrored, watermarked)


@pytest.fixture(scope="module")
def faces() -> FaceTable:
    """300 faces, then one changed copy of each of the first fifty."""
    drawn = synthetic(n_train=300, n_val=7, n_test=7, seed=3)
    originals = drawn.images[drawn.rows("train")]
    images = np.concatenate([originals, *(made(i, change)[None] for i, change in planted(originals))])
    n = len(images)
    ids = np.array([f"row {i}".encode() for i in range(n)])
    return FaceTable(images, np.zeros(n, np.int64), np.zeros(n, np.int8), ids, ("happy",), "planted", "0")


def planted(originals: NDArray[np.uint8]) -> list[tuple[Image, Callable[[Image], Image]]]:
    return [(originals[i], CHANGES[i % len(CHANGES)]) for i in range(50)]


def made(image: Image, change: Callable[[Image], Image]) -> Image:
    return np.ascontiguousarray(change(image))


def test_near_pairs_finds_only_planted_pairs(faces: FaceTable) -> None:
    pairs = duplicates.near_pairs(faces.images)
    found = dict(zip(pairs.second.tolist(), pairs.first.tolist(), strict=True))
    assert found == {300 + i: i for i in range(50)}
    assert pairs.mirrored.nonzero()[0].tolist() == [i for i in range(50) if CHANGES[i % len(CHANGES)] is mirrored]
    assert (pairs.similarity >= duplicates.SIMILAR).all() and (pairs.similarity <= 1 + 1e-5).all()


def test_similar_frames_are_grouped_without_comparing_all_pairs(faces: FaceTable) -> None:
    noise = np.random.default_rng(0).normal(0, 4, (150, 48, 48))
    frames = np.clip(faces.images[0] + noise, 0, 255).astype(np.uint8)
    pairs = duplicates.near_pairs(np.concatenate([frames, faces.images[1:20]]))
    assert len(pairs.first) <= 64 * 150 < 150 * 149 / 2
    graph = coo_matrix((np.ones(len(pairs.first)), (pairs.first, pairs.second)), shape=(150, 150))
    assert connected_components(graph, directed=False)[0] == 1


def test_near_duplicate_is_found_among_similar_thumbnails(faces: FaceTable) -> None:
    noise = np.random.default_rng(0).normal(0, 20, (100, 48, 48))
    frames = np.clip(faces.images[0] + noise, 0, 255).astype(np.uint8)
    pairs = duplicates.near_pairs(np.concatenate([frames, np.roll(frames[:1], 1, axis=2)]))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 100)]


def test_blank_images_have_no_near_duplicates() -> None:
    images = np.zeros((3, 48, 48), dtype=np.uint8)
    images[1] = 200
    images[2, 0, 0] = 1
    assert len(duplicates.near_pairs(images).first) == 0


def test_groups_join_duplicates_and_near_duplicates(faces: FaceTable, tmp_path: Path) -> None:
    again = replace(
        faces,
        **{
            name: np.concatenate([getattr(faces, name), getattr(faces, name)[300:]])
            for name in ("images", "labels", "split", "ids")
        },
    )
    group, _ = duplicates.near_duplicates(again, tmp_path)
    assert len(np.unique(group)) == 300
    for i in range(50):
        assert group[i] == group[300 + i] == group[350 + i]


def test_pairs_are_cached_on_disk(faces: FaceTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = duplicates.near_duplicates(faces, tmp_path)
    monkeypatch.setattr(duplicates, "near_pairs", None)
    assert np.array_equal(duplicates.near_duplicates(faces, tmp_path)[0], first)


def test_damaged_cache_of_pairs_is_recomputed(faces: FaceTable, tmp_path: Path) -> None:
    first, _ = duplicates.near_duplicates(faces, tmp_path)
    [file] = tmp_path.glob("*/*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(duplicates.near_duplicates(faces, tmp_path)[0], first)


@pytest.mark.slow
@pytest.mark.real_data
def test_near_duplicates_of_fer2013(fer2013_dir: Path, tmp_path: Path) -> None:
    faces = load(fer2013_dir / "fer2013.csv.gz")
    group, pairs = duplicates.near_duplicates(faces, tmp_path)
    assert len(pairs.first) == pytest.approx(5309, abs=25)  # OpenCV's releases round differently
    trained = group[faces.rows("train")]
    leaked = [int(np.isin(group[faces.rows(split)], trained).sum()) for split in ("public", "private")]
    assert leaked == pytest.approx([759, 773], abs=8)
