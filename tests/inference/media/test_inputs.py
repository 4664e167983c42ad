"""Files, folders and patterns become a list of files; each is an image or a video."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.inference.media.images import read_image
from fer_lightning.inference.media.inputs import expand, kind
from tests.inference.media.videos import write_video


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return [folder / name for name in names]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    touch(tmp_path, "b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/c.mp4", "sub/deep/d.webp", ".git/e.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folder_is_searched_and_sorted(photos: Path) -> None:
    assert expand([photos]) == [photos / name for name in ("a.PNG", "b.jpg", "sub/c.mp4", "sub/deep/d.webp")]


def test_files_keep_their_order_and_count_once(photos: Path) -> None:
    assert expand(["b.jpg", "notes.txt", "./b.jpg", "."]) == [
        Path(name) for name in ("b.jpg", "notes.txt", "a.PNG", "sub/c.mp4", "sub/deep/d.webp")
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["b.jpg"]),
        ("*", ["a.PNG", "b.jpg", "sub/c.mp4", "sub/deep/d.webp"]),
        ("**/*.webp", ["sub/deep/d.webp"]),
        ("**", ["a.PNG", "b.jpg", "sub/c.mp4", "sub/deep/d.webp"]),
        ("[ab].*", ["a.PNG", "b.jpg"]),
        ("sub/?.mp4", ["sub/c.mp4"]),
    ],
)
def test_patterns(photos: Path, pattern: str, names: list[str]) -> None:
    assert expand([pattern]) == [Path(name) for name in names]
    assert expand([str(photos / pattern)]) == [photos / name for name in names]


def test_patterns_do_not_follow_links_that_lead_in_circles(photos: Path) -> None:
    for name in ("one", "two"):
        (photos / name).symlink_to(photos, target_is_directory=True)
    assert expand(["**/*.jpg"]) == [Path("b.jpg")]
    assert expand(["**/deep/*"]) == expand(["sub/**/d.*"]) == [Path("sub/deep/d.webp")]


def test_patterns_leave_out_the_results(photos: Path) -> None:
    assert expand(["**/*.*"], Path("sub")) == [Path("a.PNG"), Path("b.jpg")]


def test_folder_that_cannot_be_listed_fails_alone(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        yield from ((parent, folders, names) for parent, folders, names in real(folder) if not parent.endswith("deep"))
        onerror(PermissionError(13, "Permission denied", str(photos / "sub/deep")))  # root may list anything

    real = os.walk
    monkeypatch.setattr(os, "walk", walk)
    assert expand([photos]) == [photos / name for name in ("a.PNG", "b.jpg", "sub/c.mp4", "sub/deep")]
    with pytest.raises(UserError, match="deep is a folder that cannot be listed"):
        read_image(photos / "sub/deep")
    with pytest.raises(UserError, match=r"deep cannot be read \(Permission denied\); name folders"):
        expand([photos / "sub/deep"])


def test_file_whose_name_is_a_pattern(photos: Path) -> None:
    touch(photos, "[b].jpg")
    assert expand(["[b].jpg"]) == [Path("[b].jpg")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gone.jpg", "^gone.jpg: no such file"),
        ("*.bmp", "no image or video matches"),
        ("*.txt", "no image or video matches"),
        ("empty", "^empty: no image or video in this folder"),
        ("", "not a path"),
        ("a\0b", "not a path"),
        ("x" * 300, "cannot be read|no such file"),
        ("pipe", "neither a file nor a folder"),
        ("a\nb", r"^a\\nb: no such file"),
    ],
)
def test_bad_input_is_one_line(photos: Path, given: str, message: str) -> None:
    touch(photos, "empty/notes.txt")
    os.mkfifo(photos / "pipe")
    with pytest.raises(UserError, match=message) as refused:
        expand(["b.jpg", given])
    assert "\n" not in str(refused.value)


def test_thousands_of_files(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i % 7}/{i:05}.jpg" for i in range(3000)))
    found = expand([tmp_path, str(tmp_path / "**/*.jpg")])
    assert len(found) == 3000 and found == sorted(found)


def test_kind_goes_by_content(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.mp4", "PNG")
    write_video(tmp_path / "video.mp4", 3).rename(tmp_path / "video.jpg")
    write_video(tmp_path / "film.avi", 3, codec="MJPG")
    (tmp_path / "film.avi").rename(tmp_path / "film")
    assert kind(tmp_path / "photo.mp4") == "image"
    assert kind(tmp_path / "video.jpg") == kind(tmp_path / "film") == "video"
    (tmp_path / "heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert kind(tmp_path / "heic") == "image"


def test_kind_of_motion_jpeg(tmp_path: Path) -> None:
    with (tmp_path / "camera.mjpeg").open("wb") as file:
        for shade in range(5):
            Image.new("L", (48, 48), 50 * shade).save(file, "JPEG")
    assert kind(tmp_path / "camera.mjpeg") == "video"


def test_kind_of_damaged_files_goes_by_suffix(tmp_path: Path) -> None:
    for name, expected in (("a.jpg", "image"), ("a.mp4", "video"), ("a.MOV", "video")):
        (tmp_path / name).write_bytes(b"not what it says\n" * 9)
        assert kind(tmp_path / name) == expected
    (tmp_path / "a.txt").write_bytes(b"a text\n" * 99)
    with pytest.raises(UserError, match=r"a\.txt is neither an image nor a video"):
        kind(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"gone\.jpg cannot be read"):
        kind(tmp_path / "gone.jpg")
