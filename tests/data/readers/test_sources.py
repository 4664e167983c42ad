"""Every format of FER-2013 gives the same table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lightning.data.labels import class_name, class_order, split_name
from fer_lightning.data.readers.sources import load
from fer_lightning.data.table import FER_CLASSES, SPLITS, UNLABELLED, FaceTable
from fer_lightning.errors import UserError
from tests.data.conftest import (
    FORMS,
    PACKERS,
    csv_bytes,
    faces,
    fer_rows,
    folder_files,
    image_bytes,
    pixel_text,
    write_folder,
    write_form,
    write_tar,
    write_zip,
)


def splits_of(table: FaceTable) -> list[str]:
    return [SPLITS[i] for i in table.split]


def check_fer(table: FaceTable, n: int = 21) -> None:
    """Check that `table` is that of `fer_rows`."""
    np.testing.assert_array_equal(table.images, faces(n))
    assert table.labels.tolist() == [i % 7 for i in range(n)]
    assert splits_of(table) == [("train", "public", "private")[(i // 7) % 3] for i in range(n)]
    assert table.ids.tolist() == [b"row %d" % i for i in range(n)]
    assert table.classes == FER_CLASSES


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    ("columns", "end"),
    [
        ("emotion,pixels,Usage", "\n"),
        ("emotion,pixels,Usage", "\r\n"),
        ("emotion, Usage, pixels", "\n"),
        ("PIXELS,usage,Emotion", "\n"),
        ("emotion,pixels,Usage", "\n\n"),
    ],
)
def test_csv_columns_in_any_order_and_case(tmp_path: Path, columns: str, end: str) -> None:
    path = tmp_path / "faces.csv"
    path.write_bytes(csv_bytes(fer_rows(), columns, end))
    check_fer(load(path))


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("name", ["fer2013.csv", "no_ending"])
def test_csv_compression_is_detected_from_content(tmp_path: Path, packing: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACKERS[packing](csv_bytes(fer_rows())))
    check_fer(load(path))


@pytest.mark.parametrize("form", FORMS)
def test_challenge_archive(tmp_path: Path, form: str) -> None:
    files = {
        "fer2013/fer2013.bib": b"@inproceedings{...}",
        "fer2013/fer2013.csv": csv_bytes(fer_rows()),
        "fer2013/README": b"...",
    }
    check_fer(load(write_form(tmp_path / "download", files, form)))


@pytest.mark.parametrize("form", FORMS)
def test_complete_kaggle_download_prefers_the_file_with_all_labels(tmp_path: Path, form: str) -> None:
    rows = fer_rows()
    inner = write_tar(tmp_path / "fer2013.tar.gz", {"fer2013/fer2013.csv": csv_bytes(rows)}, "gz").read_bytes()
    files = {
        "example_submission.csv": b"Id,Prediction\n0,1\n",
        "fer2013.tar.gz": inner,
        "train.csv": csv_bytes(rows[:7], "emotion,pixels"),
        "icml_face_data.csv": csv_bytes(rows, "emotion, Usage, pixels"),
        "test.csv": csv_bytes(rows[7:], "pixels"),
    }
    check_fer(load(write_form(tmp_path / "challenge", files, form)))


def test_fer2013_csv_is_preferred_among_several_complete_files(tmp_path: Path) -> None:
    files = {name: csv_bytes(fer_rows()[:n]) for name, n in (("a.csv", 7), ("fer2013.csv", 21), ("z.csv", 7))}
    check_fer(load(write_folder(tmp_path / "several", files)))


@pytest.mark.parametrize("given", ["train.csv", "."])
def test_train_csv_includes_unlabelled_test_csv_beside_it(tmp_path: Path, given: str) -> None:
    rows = fer_rows(10)
    files = {"train.csv": csv_bytes(rows[:7], "emotion,pixels"), "test.csv": csv_bytes(rows[7:], "pixels")}
    table = load(write_folder(tmp_path / "two", files) / given)
    np.testing.assert_array_equal(table.images, faces(10))
    assert table.labels.tolist() == [*range(7), *3 * [UNLABELLED]]
    assert splits_of(table) == 7 * ["train"] + 3 * ["test"]
    assert table.ids[[6, 7]].tolist() == [b"row 6", b"test.csv row 0"]


@pytest.mark.parametrize("given", ["train.csv", "."])
@pytest.mark.parametrize("name", ["val.csv", "validation.csv"])
def test_train_csv_includes_val_csv_beside_it(tmp_path: Path, name: str, given: str) -> None:
    rows = fer_rows(21)
    parts = {"train.csv": rows[:7], name: rows[7:14], "test.csv": rows[14:]}
    files = {file: csv_bytes(part, "emotion,pixels") for file, part in parts.items()}
    table = load(write_folder(tmp_path / "three", files) / given)
    np.testing.assert_array_equal(table.images, faces(21))
    assert splits_of(table) == 7 * ["train"] + 7 * ["val"] + 7 * ["test"]


def test_csv_without_usage_is_all_for_training(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(csv_bytes(fer_rows(7), "emotion,pixels"))
    assert splits_of(load(path)) == 7 * ["train"]


def test_csv_with_class_names(tmp_path: Path) -> None:
    names = ["Contempt", "HAPPINESS", " anger", "happy", "Awe"]
    rows: list[dict[str, object]] = [
        {"emotion": name, "pixels": pixel_text(face)} for name, face in zip(names, faces(5), strict=True)
    ]
    path = tmp_path / "mine.csv"
    path.write_bytes(csv_bytes(rows, "emotion,pixels"))
    table = load(path)
    assert table.classes == ("angry", "happy", "awe", "contempt")
    assert table.labels.tolist() == [3, 1, 0, 1, 2]


@pytest.mark.parametrize("header", ["emotion,note,pixels", '"emotion","note","pixels"'])
def test_csv_quotes_spaces_bom_and_large_batches(header: str, tmp_path: Path) -> None:
    """More rows than one batch, some of which only the exact parser accepts."""
    texts = [pixel_text(face) for face in faces(150)]
    texts[3] = f'"{texts[3]}"'
    texts[4] = f"  {texts[4].replace(' ', '   ')} "
    texts[5] = '" ' + texts[5].replace(" ", "\n", 3) + '"'
    texts[140] = texts[140].replace(" ", "\t")
    texts[149] = " ".join(f"{int(t):04d}" for t in texts[149].split())
    lines = [header] + [f'{i % 7},"a ""note"", with comma",{text}' for i, text in enumerate(texts)]
    path = tmp_path / "quoted.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())  # and no line end at the end
    table = load(path)
    np.testing.assert_array_equal(table.images, faces(150))
    assert table.labels.tolist() == [i % 7 for i in range(150)]


# ---------------------------------------------------------------- class folders


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrapper", ["", "archive/fer2013/"])
def test_class_folders(tmp_path: Path, form: str, wrapper: str) -> None:
    files = folder_files({"Happiness": 2, "zeal ": 1, "SAD": 1}, ("Train", "validation", "test"))
    junk = {
        "train/.hidden": b"",
        "__MACOSX/train/sad/._0.png": b"",
        "Test/Thumbs.db": b"",
        "train/SAD/desktop.ini": b"",
    }
    junk = {k: v for k, v in junk.items() if form != "folder"} | {".git/x": b"", "Train/SAD/Thumbs.db": b""}
    table = load(write_form(tmp_path / "faces", {wrapper + k: v for k, v in (junk | files).items()}, form))
    assert table.classes == ("happy", "sad", "zeal")
    assert table.ids.tolist() == sorted((wrapper + name).encode() for name in files)
    names = [i.decode().removeprefix(wrapper) for i in table.ids]
    assert splits_of(table) == [{"T": "train", "v": "val", "t": "test"}[name[0]] for name in names]
    assert [table.classes[k] for k in table.labels] == [class_name(name.split("/")[1]) for name in names]
    by_name = dict(zip(files, faces(len(files)), strict=True))
    np.testing.assert_array_equal(table.images, [by_name[name] for name in names])


def test_row_order_does_not_depend_on_storage_order(tmp_path: Path) -> None:
    files = folder_files()
    backwards = dict(reversed(files.items()))
    one, other = load(write_zip(tmp_path / "a.zip", files)), load(write_zip(tmp_path / "b.zip", backwards))
    assert one.fingerprint != other.fingerprint
    assert one.ids.tolist() == other.ids.tolist()
    np.testing.assert_array_equal(one.images, other.images)


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk", folder_files())
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(tmp_path / "disk/train")
    (tmp_path / "data/again").symlink_to(tmp_path / "data")
    assert len(load(tmp_path / "data")) == 4


def test_public_and_private_test_come_from_file_names(tmp_path: Path) -> None:
    png = image_bytes(faces(1)[0])
    files = {"train/sad/a.png": png, "test/sad/PublicTest_1.png": png, "test/sad/PrivateTest_2.png": png}
    assert splits_of(load(write_folder(tmp_path / "all", files))) == ["private", "public", "train"]
    assert splits_of(load(write_folder(tmp_path / "some", files | {"test/sad/z.png": png}))) == [*3 * ["test"], "train"]


def test_split_folders_with_kaggles_names(tmp_path: Path) -> None:
    table = load(write_folder(tmp_path, folder_files({"sad": 1}, ("Training", "PublicTest", "PrivateTest"))))
    assert splits_of(table) == ["private", "public", "train"]


def test_numbered_folders_are_labels_of_fer2013_only_without_others(tmp_path: Path) -> None:
    assert load(write_folder(tmp_path / "fer", folder_files({"0": 1, "3": 1}))).classes == ("angry", "happy")
    assert load(write_folder(tmp_path / "raf", folder_files({"1": 1, "7": 1}))).classes == ("1", "7")


def to_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def one_image(tmp_path: Path, data: bytes) -> np.ndarray:
    return np.asarray(load(write_folder(tmp_path / "one", {"train/sad/x": data})).images[0]).astype(int)


GREY = np.repeat(np.repeat(faces(1, seed=3)[0, ::8, ::8] // 2 + 60, 8, 0), 8, 1)  # 6 by 6 squares


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("RGB"),
        Image.fromarray(GREY).convert("RGBA"),
        Image.fromarray(GREY).convert("LA"),
        Image.fromarray(GREY).convert("P"),
        Image.fromarray(GREY.astype(np.uint16) * 256 + 7),
    ],
    ids=lambda image: image.mode,
)
def test_48_by_48_image_keeps_its_grey_levels_in_every_colour_mode(tmp_path: Path, image: Image.Image) -> None:
    assert np.abs(one_image(tmp_path, to_bytes(image)) - GREY).max() <= 1


def test_large_images_keep_their_centre(tmp_path: Path) -> None:
    wide = Image.new("L", (400, 192), 0)
    wide.paste(Image.fromarray(GREY).resize((192, 192), Image.Resampling.NEAREST), (104, 0))
    assert np.abs(one_image(tmp_path, to_bytes(wide)) - GREY).mean() < 4
    assert one_image(tmp_path / "tiny", to_bytes(Image.new("L", (2, 3), 77))).tolist() == 48 * [48 * [77]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    data = to_bytes(Image.fromarray(GREY), kind, exif=exif)
    assert np.abs(one_image(tmp_path, data) - np.rot90(GREY, -1)).mean() < 5


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    assert (one_image(tmp_path, to_bytes(Image.new("RGBA", (48, 48), (0, 0, 0, 0)))) == 255).all()


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Anger", "angry"),
        (" HAPPINESS ", "happy"),
        ("surprised", "surprise"),
        ("scared", "fear"),
        ("Contempt", "contempt"),
    ],
)
def test_class_name(text: str, name: str) -> None:
    assert class_name(text) == name


def test_class_order() -> None:
    assert class_order(["zeal", "neutral", "awe", "angry", "awe"]) == ("angry", "neutral", "awe", "zeal")


@pytest.mark.parametrize(
    ("text", "name"), [("Public_Test", "public"), ("DEV", "val"), ("Training", "train"), ("happy", None)]
)
def test_split_name(text: str, name: str | None) -> None:
    assert split_name(text) == name


def test_arrays_are_read_only(tmp_path: Path) -> None:
    table = load(write_folder(tmp_path, folder_files()))
    assert not any(a.flags.writeable for a in (table.images, table.labels, table.split, table.ids))


# ---------------------------------------------------------------- the real data

CLASS_COUNTS = {
    "train": [3995, 436, 4097, 7215, 4830, 3171, 4965],
    "public": [467, 56, 496, 895, 653, 415, 607],
    "private": [491, 55, 528, 879, 594, 416, 626],
}


@pytest.mark.real_data
def test_real_csv(real_csv: FaceTable) -> None:
    assert {split: real_csv.counts(real_csv.rows(split)).tolist() for split in CLASS_COUNTS} == CLASS_COUNTS
    assert real_csv.images[0, 0, :4].tolist() == [70, 80, 82, 72]
    assert real_csv.images[-1, -1, -3:].tolist() == [189, 199, 201]


@pytest.mark.slow
@pytest.mark.real_data
def test_real_folder_holds_the_same_faces(fer2013_dir: Path, real_csv: FaceTable, tmp_path: Path) -> None:
    folder = load(fer2013_dir / "fer2013-folder.zip", cache_dir=tmp_path)
    for split, counts in CLASS_COUNTS.items():
        rows, csv_rows = folder.rows(split), real_csv.rows(split)
        assert folder.counts(rows).tolist() == counts
        mean, csv_mean = folder.images[rows].mean(axis=(1, 2)), real_csv.images[csv_rows].mean(axis=(1, 2))
        np.testing.assert_allclose(np.sort(mean), np.sort(csv_mean), atol=0.6)


def test_meanings_of_numbered_folders_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in (0, 3):
        for split in ("train", "test"):
            (tmp_path / split / str(label)).mkdir(parents=True)
            Image.fromarray(faces(9)[label]).save(tmp_path / split / str(label) / "1.png")
    assert load(tmp_path).classes == ("angry", "happy")
    assert "(0 = angry, 3 = happy): rename them if theirs are others" in caplog.text


def test_a_list_of_files_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("pth,label\na/1.jpg,happy\n")
    with pytest.raises(UserError, match=r"no column 'pixels'.*A list of image files is not read: .* train/<class>/"):
        load(tmp_path / "labels.csv")
