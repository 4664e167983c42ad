"""Invalid input: one line reports where, what is wrong and the remedy, and nothing else is raised."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_lightning.data.readers.sources import load
from fer_lightning.errors import UserError
from tests.data.conftest import (
    FORMS,
    PACKERS,
    csv_bytes,
    faces,
    fer_rows,
    folder_files,
    image_bytes,
    write_folder,
    write_form,
    write_tar,
    write_zip,
)


def refused(path: Path, *parts: str) -> str:
    """The error message for `path`: one line that contains all `parts`."""
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert message.isprintable(), "one line"
    assert len(message) < 400 + 2 * len(str(path))
    for part in parts:
        assert part in message
    return message


# ---------------------------------------------------------------- paths


def test_missing_path_reports_how_to_get_the_data_and_similar_names(tmp_path: Path) -> None:
    (tmp_path / "fer2013.csv").touch()
    path = tmp_path / "fer2103.csv"
    refused(path, str(path), "fer2013.csv?", "msambare/fer2013", "data=synthetic")
    refused(tmp_path / "no" / "such" / "place", "does not exist", "data=synthetic")
    refused(tmp_path / "fer2013.csv" / "below", "does not exist")


@pytest.mark.parametrize("path", ["", "a\0b", "~nobody_of_that_name/x", "x" * 300, "http://127.0.0.1:9/fer2013.csv"])
def test_invalid_path(path: str) -> None:
    with pytest.raises(UserError, match=r"data\.path|cannot be read"):
        load(path)


def test_dangling_link_and_special_files(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    refused(tmp_path / "link.csv", "link.csv", "link to nothing")
    write_folder(tmp_path / "faces", folder_files())
    (tmp_path / "faces/train/sad/gone.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path / "faces", "gone.png", "link to nothing")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a file nor a directory")


@pytest.mark.parametrize("form", ["csv", "folder", "zip"])
def test_unreadable_file(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, since root may read everything."""
    path = tmp_path / "faces"
    if form == "csv":
        path.write_bytes(csv_bytes(fer_rows()))
    else:
        write_form(path, folder_files(), form)
    unreadable = path / "train/sad/0.png" if form == "folder" else path
    really_open = io.open

    def deny(file: object, *args: object, **kwargs: object) -> object:
        if str(file) == str(unreadable):
            raise PermissionError(13, "Permission denied")
        return really_open(file, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", deny)
    monkeypatch.setattr("builtins.open", deny)
    refused(path, unreadable.name, "permission denied", "chmod")


# ---------------------------------------------------------------- CSV

GOOD = fer_rows(14)
ROW_13 = {**GOOD[13]}


def with_row(**changes: object) -> bytes:
    return csv_bytes([*GOOD[:13], {**ROW_13, **changes}])


PIXELS = str(ROW_13["pixels"])
FEWER = PIXELS.rsplit(" ", 4)[0]


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["is empty"]),
        (b"\n\n", ["is empty"]),
        (b"emotion,pixels,Usage\n", ["header and no rows"]),
        (b"emotion,Usage\n0,Training\n", ["no column 'pixels'", "'emotion', 'usage'"]),
        (b"label;pixels\n", ["no column 'pixels'", "'label;pixels'"]),
        (b"pixels,Usage\n", ["no column 'emotion'", "'pixels', 'usage'"]),
        (b"version https://git-lfs.github.com/spec/v1\noid 1\n", ["no column 'pixels'", "git-lfs"]),
        ("emotion,pixels".encode("utf-16"), ["neither UTF-8"]),
        (image_bytes(faces(1)[0]), ["neither UTF-8"]),
        (bytes(2000), ["no column 'pixels'"]),
        (b"x" * (2 << 20), ["header is longer than"]),
        (with_row(pixels=PIXELS + " 12x"), ["row 13", "'12x'", "0 to 255"]),
        (with_row(pixels=PIXELS.replace(" ", " -1 ", 1)), ["row 13", "'-1'"]),
        (with_row(pixels=PIXELS.replace(" ", " 1.5 ", 1)), ["row 13", "'1.5'"]),
        (with_row(pixels="\u0663" + PIXELS), ["row 13", "is not a number"]),
        (with_row(pixels="256 " + PIXELS.split(" ", 1)[1]), ["row 13", "'256'", "0 to 255"]),
        (with_row(pixels="1012 " + PIXELS.split(" ", 1)[1]), ["row 13", "'1012'", "0 to 255"]),
        (with_row(pixels="9" * 5000 + " " + PIXELS.split(" ", 1)[1]), ["row 13", "'9999", "0 to 255"]),
        (with_row(pixels=FEWER), ["row 13", "2300 pixels, not 2304"]),
        (with_row(pixels=PIXELS + " 0"), ["row 13", "2305 pixels, not 2304"]),
        (with_row(pixels=""), ["row 13", "0 pixels"]),
        (
            csv_bytes([*GOOD[:12], {**GOOD[12], "pixels": FEWER}, {**ROW_13, "pixels": "1 2 3 4 " + PIXELS}]),
            ["row 12", "2300 pixels"],
        ),
        (with_row(emotion=7), ["row 13", "'7'", "0 angry"]),
        (with_row(emotion=-1), ["row 13", "'-1'"]),
        (with_row(emotion="happy"), ["row 13", "'happy'"]),
        (with_row(emotion=""), ["row 13", "emotion ''"]),
        (with_row(usage="Trainin"), ["row 13", "'Trainin'", "PrivateTest"]),
        (with_row(usage=""), ["row 13", "Usage ''"]),
        (csv_bytes(GOOD) + b"0,1 2 3\n", ["row 14", "2 values", "names 3"]),
        (csv_bytes(GOOD) + b'0,"1 2 3', ["row 14", "quotes"]),
        (csv_bytes(GOOD) + b'0,"1 2 3\n' + (b"0," + b"1 " * 500 + b"\n") * 1100, ["row 14", "left open"]),
        (csv_bytes(GOOD) + b"0," + b"1 " * (1 << 20), ["row 14", "longer than"]),
        (csv_bytes(GOOD)[:-3000], ["row 13"]),
        (csv_bytes(GOOD).replace(b"PublicTest", b"Public\xfftest"), ["row 7", "not UTF-8"]),
        (csv_bytes([{**r, "emotion": "sad" if i < 3 else 3} for i, r in enumerate(GOOD)]), ["row 3", "'3'"]),
    ],
)
def test_bad_csv(tmp_path: Path, data: bytes, parts: list[str]) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes(data)
    refused(path, "some.csv", *parts)
    path.write_bytes(gzip.compress(data))
    refused(path, "some.csv", *parts)


def test_several_csv_files_to_choose_from(tmp_path: Path) -> None:
    data = csv_bytes(GOOD, "emotion,pixels")
    refused(write_folder(tmp_path / "both", {"a.csv": data, "b.csv": data}), "a.csv, b.csv", "data.path")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_by_unusual_methods(tmp_path: Path, method: int) -> None:
    """zipfile decompresses a block of them at once, however large it becomes."""
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("faces.csv", csv_bytes(GOOD))
    refused(path, "faces.zip", "faces.csv", "unusual method", "Deflate")


# ---------------------------------------------------------------- class folders


def edited(add: dict[str, bytes | None]) -> dict[str, bytes]:
    files = folder_files() | {k: v for k, v in add.items() if v is not None}
    return {k: v for k, v in files.items() if add.get(k, b"") is not None}


PNG = image_bytes(faces(1)[0])


def png_of_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return PNG[:8] + chunk + PNG[8 + 25 :]


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize(
    ("add", "parts"),
    [
        ({"train/sad/0.png": None, "train/sad/Thumbs.db": b"x"}, ["/sad"]),
        ({"test/fear/0.png": PNG}, ["test/fear", "no counterpart in train/"]),
        ({"train/sad/notes.txt": b"some text"}, ["train/sad/notes.txt", "not an image"]),
        ({"train/sad/empty.jpg": b""}, ["train/sad/empty.jpg", "not an image"]),
        ({"train/sad/cut.png": PNG[:-400]}, ["train/sad/cut.png", "damaged"]),
        ({"train/sad/cut.jpg": image_bytes(faces(1)[0], "JPEG")[:-400]}, ["train/sad/cut.jpg", "damaged"]),
        ({"train/sad/bomb.png": png_of_size(9000, 8000)}, ["train/sad/bomb.png", "64,000,000 pixels"]),
        ({"train/sad/bomb.png": png_of_size(11000, 11000)}, ["train/sad/bomb.png", "64,000,000 pixels"]),
        ({"train/sad/bomb.png": png_of_size(90000, 90000)}, ["train/sad/bomb.png", "64,000,000 pixels"]),
        ({"train/lost.png": PNG}, ["train/lost.png", "train/<class>/lost.png"]),
        ({"train/Sadness/0.png": PNG}, ["train/Sadness", "train/sad", "'sad'"]),
        ({"valid/sad/0.png": PNG, "dev/sad/0.png": PNG}, ["dev", "valid", "'val'"]),
        ({"other/train/sad/0.png": PNG} | dict.fromkeys(folder_files()), []),
        ({"a/train/sad/0.png": PNG, "b/train/sad/0.png": PNG} | dict.fromkeys(folder_files()), ["a/", "b/"]),
        ({"train/sad/new\nline.txt": b""}, ["new\\nline.txt"]),
    ],
)
def test_bad_folder(tmp_path: Path, form: str, add: dict[str, bytes | None], parts: list[str]) -> None:
    path = write_form(tmp_path / "faces", edited(add), form)
    if parts:
        refused(path, "faces", *parts)
    else:
        assert len(load(path)) == 1


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_empty_class_folder(tmp_path: Path, form: str) -> None:
    path = tmp_path / "faces"
    write_form(path, folder_files(), form)
    if form == "folder":
        (path / "train/fear").mkdir()
    elif form == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.mkdir("train/fear")
    else:
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo("train/fear")
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
    refused(path, "train/fear", "no images")


@pytest.mark.parametrize("form", FORMS)
def test_source_without_faces(tmp_path: Path, form: str) -> None:
    path = write_form(tmp_path / "stuff", {"happy/1.jpg": b"", "notes.csv": b"a,b\n1,2\n", "x.csv": b"a\n"}, form)
    refused(path, "stuff", "train/happy/1.jpg", "fer2013.csv", "happy, notes.csv")


def test_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, "but nothing", "train/happy/1.jpg")


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "train/../../x.png", "C:/x.png", "train\\sad\\x.png"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_member_outside_the_archive(tmp_path: Path, name: str, form: str) -> None:
    path = write_form(tmp_path / "evil", folder_files() | {name: PNG}, form)
    refused(path, "evil", name, "outside the archive")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_link_or_device_in_tar(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "evil.tar", folder_files())
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("train/sad/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    refused(path, "evil.tar: train/sad/link.png", "link or a special file")


def test_nameless_member_in_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "evil.zip", {"?": PNG})
    path.write_bytes(path.read_bytes().replace(b"?", b"\0"))
    refused(path, "evil.zip", "nowhere")


def test_link_in_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "evil.zip", folder_files())
    info = zipfile.ZipInfo("train/sad/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(path, "evil.zip: train/sad/link.png", "is a link")


def test_duplicate_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "twice.tar", folder_files())
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("train/sad/0.png"))
    refused(path, "train/sad/0.png", "twice")


def test_password(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "locked.zip", folder_files())
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    refused(path, "locked.zip", "password")


def test_zip_with_an_absurd_size(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bomb.zip", {"train/sad/x.png": PNG})
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(data)
    refused(path, "bomb.zip", "4,294,967,280", "bomb")


ZEROS = bytes(1 << 20)
LINES = (b" " * 1023 + b"\n") * (1 << 10)


@pytest.mark.parametrize("packing", ["gz", "xz", "bz2"])
def test_stream_bomb(tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many blank lines, none of them long."""
    monkeypatch.setattr("fer_lightning.data.readers.streams.FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb.csv"
    path.write_bytes(PACKERS[packing](b"emotion,pixels\n" + 4 * LINES))
    refused(path, "bomb.csv", "bomb does")


def test_tar_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo("train/sad/x.png")
    info.size = 200 << 20
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf())
        for _ in range(200):
            file.write(ZEROS)
    refused(path, "bomb.tar.gz", "bomb does")


def one_csv(path: Path, form: str) -> Path:
    data = csv_bytes(GOOD)
    if form in PACKERS:
        path.write_bytes(PACKERS[form](data))
        return path
    return write_form(path, {"fer2013/fer2013.csv": data, "fer2013/README": b"text"}, form)


PACKED = ("gz", "xz", "bz2", "zip", "tar", "tar.gz", "tar.xz", "tar.bz2")


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.6, 0.99])
def test_truncated_archive(tmp_path: Path, form: str, kept: float) -> None:
    path = one_csv(tmp_path / "cut", form)
    data = path.read_bytes()
    if form == "tar" and kept == 0.99:
        data = data[: len(data.rstrip(b"\0"))]  # within the last member, not in the padding
    path.write_bytes(data[: int(len(data) * kept)])
    refused(path, "cut")


def outcome(path: Path) -> str:
    """The error message for `path`, empty if it can be loaded; any other exception fails the test."""
    try:
        load(path)
    except UserError as error:
        return str(error)
    return ""


def plain_csv(path: Path) -> Path:
    path.write_bytes(csv_bytes(GOOD))
    return path


def test_damaged_tar_header_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "faces.tar", folder_files())
    data = path.read_bytes()
    path.write_bytes(data.replace(b"test/sad/0.png", b"test/sad/1.png"))  # its checksum no longer fits
    refused(path, "faces.tar", "damaged")


@pytest.mark.parametrize("packing", ["gz", "xz", "bz2"])
def test_checksum_at_the_end_of_a_compressed_tar_is_verified(tmp_path: Path, packing: str) -> None:
    path = write_tar(tmp_path / "faces.tar", folder_files(), packing)
    data = path.read_bytes()
    path.write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    refused(path, "faces.tar", "damaged")


FUZZED: dict[str, Callable[[Path], Path]] = {
    **{f"csv.{form}": lambda path, form=form: one_csv(path, form) for form in PACKED},  # type: ignore[misc]
    **{
        f"folder.{form}": lambda path, form=form: write_form(path, folder_files(), form)  # type: ignore[misc]
        for form in ("zip", "tar", "tar.gz")
    },
    "csv": plain_csv,
    "jpegs": lambda path: write_zip(path, {f"train/sad/{i}.jpg": image_bytes(faces(2)[i], "JPEG") for i in range(2)}),
}


@pytest.mark.parametrize("form", FUZZED)
def test_damage_anywhere_loads_or_raises_one_line(tmp_path: Path, form: str) -> None:
    path = FUZZED[form](tmp_path / "fuzzed")
    data = path.read_bytes()
    places = random.Random(form)
    count = int(os.environ.get("FER_FUZZ", "12"))
    for step in range(count):
        at = places.randrange(len(data))
        if step % 3 == 0:
            damaged = data[:at]
        else:
            if step % 3 == 1:  # where the archive's own tables are, and not just packed pixels
                at = places.choice([at % min(len(data), 600), len(data) - 1 - at % min(len(data), 600)])
            damaged = data[:at] + bytes([data[at] ^ (1 << places.randrange(8))]) + data[at + 1 :]
        path.write_bytes(damaged)
        message = outcome(path)
        assert message.isprintable(), f"step {step}"
        assert not message or str(path) in message, f"step {step}"
