"""A source is parsed once for any number of processes, and never mistaken for another."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fer_lightning.data.readers import archive, csvfile, folder
from fer_lightning.data.readers import cache as cache_module
from fer_lightning.data.readers.sources import load
from fer_lightning.data.table import SPLITS
from fer_lightning.errors import UserError
from tests.data.conftest import csv_bytes, faces, fer_rows, folder_files, write_folder, write_zip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "fer2013.csv"
    path.write_bytes(csv_bytes(fer_rows()))
    return path


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were parsed, in order; a table from the cache adds nothing."""
    calls: list[str] = []
    for layout in (csvfile.Layout, folder.Layout):
        read = layout.read

        def counted(self: object, source: archive.Archive, *rest: object, read: object = read) -> object:
            calls.append(source.path.name)
            return read(self, source, *rest)  # type: ignore[operator]

        monkeypatch.setattr(layout, "read", counted)
    return calls


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content was hashed."""
    calls: list[str] = []
    sha256 = archive._sha256

    def counted(path: Path, where: str) -> str:
        calls.append(path.name)
        return sha256(path, where)

    monkeypatch.setattr(archive, "_sha256", counted)
    return calls


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat time stamps of all files as old enough to be trusted."""
    monkeypatch.setattr(cache_module, "_UNTRUSTED_NS", -(10**9))


def entry(root: Path, suffix: str = ".npz") -> Path:
    """The only file in the cache with that suffix; besides .npy and .npz there is nothing."""
    tables = root / f"v{cache_module.FORMAT}" / "tables"
    assert sorted(path.suffix for path in tables.iterdir()) == [".npy", ".npz"]
    return next(tables.glob(f"*{suffix}"))


def test_second_load_is_memory_mapped_and_equal(csv: Path, root: Path, parsed: list[str]) -> None:
    first, second = load(csv, cache_dir=root), load(csv, cache_dir=root)
    assert parsed == ["fer2013.csv"]
    for name in ("images", "labels", "split", "ids"):
        one, other = getattr(first, name), getattr(second, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert (first.classes, first.source, first.fingerprint) == (second.classes, second.source, second.fingerprint)
    base = second.images
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[assignment]
    assert isinstance(base, np.memmap)


def test_environment_variable_sets_the_cache_folder(csv: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_LIGHTNING_CACHE", str(root))
    load(csv)
    assert entry(root).is_file()


def test_same_content_at_another_path_shares_the_entry(
    csv: Path, root: Path, tmp_path: Path, parsed: list[str]
) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes(csv.read_bytes())
    first, second = load(csv, cache_dir=root), load(copy, cache_dir=root)
    assert parsed == ["fer2013.csv"]
    assert first.fingerprint == second.fingerprint
    assert (first.source, second.source) == (str(csv), str(copy))


def test_a_name_that_gives_the_split_is_part_of_the_entry(root: Path, tmp_path: Path) -> None:
    for name, split in (("test.csv", "test"), ("mine.csv", "train"), ("Test.csv.gz", "test"), ("val.csv", "val")):
        (tmp_path / name).write_bytes(csv_bytes(fer_rows(7), "emotion,pixels"))
        assert {SPLITS[i] for i in load(tmp_path / name, cache_dir=root).split} == {split}, name


@pytest.mark.usefixtures("settled")
def test_unchanged_files_are_not_hashed_again(csv: Path, root: Path, hashed: list[str], tmp_path: Path) -> None:
    images = write_folder(tmp_path / "faces", folder_files())
    for path, files in ((csv, 1), (images, 8)):
        hashed.clear()
        load(path, cache_dir=root)
        assert len(hashed) == files
        load(path, cache_dir=root)
        assert len(hashed) == files


def test_recently_changed_file_is_hashed_again(csv: Path, root: Path, hashed: list[str]) -> None:
    load(csv, cache_dir=root)
    load(csv, cache_dir=root)
    assert len(hashed) == 2


@pytest.mark.usefixtures("settled")
def test_changed_content_of_equal_size_and_time_is_detected(csv: Path, root: Path) -> None:
    before, old = load(csv, cache_dir=root), csv.stat()
    time.sleep(0.02)
    csv.write_bytes(csv.read_bytes().replace(b"\n0,", b"\n6,"))
    os.utime(csv, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert csv.stat().st_size == old.st_size
    after = load(csv, cache_dir=root)
    assert (before.labels[0], after.labels[0]) == (0, 6)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", ["replace", "add", "remove", "empty class"])
def test_changed_folder_is_detected(tmp_path: Path, root: Path, change: str) -> None:
    files = folder_files()
    path = write_folder(tmp_path / "faces", files)
    before = load(path, cache_dir=root)
    if change == "replace":
        (path / "train/sad/0.png").write_bytes(files["test/sad/0.png"])
    elif change == "add":
        (path / "train/sad/new.png").write_bytes(files["test/sad/0.png"])
    elif change == "remove":
        (path / "train/happy/1.png").unlink()
    else:
        (path / "train/fear").mkdir()
        with pytest.raises(UserError, match="no images"):
            load(path, cache_dir=root)
        return
    assert load(path, cache_dir=root).fingerprint != before.fingerprint


def test_file_that_changes_while_it_is_read_is_not_cached(
    csv: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = csvfile.Layout.read

    def read_and_touch(*args: object) -> object:
        table = read(*args)  # type: ignore[arg-type]
        csv.write_bytes(csv.read_bytes() + b"\n")
        return table

    monkeypatch.setattr(csvfile.Layout, "read", read_and_touch)
    with pytest.raises(UserError, match="changed while"):
        load(csv, cache_dir=root)
    assert not root.exists()


def damage(file: Path, kind: str) -> None:
    data = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "flipped":
        file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    else:
        file.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "text": b"null"}[kind])


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "flipped", "text"])
def test_damaged_entry_is_rebuilt(csv: Path, root: Path, parsed: list[str], suffix: str, kind: str) -> None:
    load(csv, cache_dir=root)
    damage(entry(root, suffix), kind)
    table = load(csv, cache_dir=root)
    np.testing.assert_array_equal(table.images, faces(21))
    assert table.labels.tolist() == [i % 7 for i in range(21)]
    load(csv, cache_dir=root)
    assert len(parsed) == 2
    assert entry(root).is_file()


def test_a_bit_flipped_anywhere_is_detected_or_harmless(csv: Path, root: Path) -> None:
    file = (load(csv, cache_dir=root), entry(root))[1]
    data = file.read_bytes()
    for at in range(0, len(data), 11):
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        assert load(csv, cache_dir=root).labels.tolist() == [i % 7 for i in range(21)]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"listing": 1}'])
def test_damaged_memo_is_ignored(csv: Path, root: Path, text: str) -> None:
    load(csv, cache_dir=root)
    (memo,) = (root / f"v{cache_module.FORMAT}" / "memos").iterdir()
    assert json.loads(memo.read_text())["path"] == str(csv)
    memo.write_text(text)
    assert len(load(csv, cache_dir=root)) == 21


def test_other_format_version_is_another_entry(
    csv: Path, root: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(csv, cache_dir=root)
    monkeypatch.setattr(cache_module, "FORMAT", cache_module.FORMAT + 1)
    load(csv, cache_dir=root)
    assert len(parsed) == 2


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.usefixtures("settled")
def test_unusable_cache_folder_gives_one_warning(csv: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.write_text("a file, where no folder can be made, whoever runs this")
    np.testing.assert_array_equal(load(csv, cache_dir=root).images, faces(21))
    (message,) = warnings_in(caplog)
    assert str(root) in message
    assert "FER_LIGHTNING_CACHE" in message


@pytest.mark.usefixtures("settled")
def test_full_disk_gives_one_warning_and_leaves_nothing(
    csv: Path, root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_until_full(file: Path, **_: np.ndarray) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", save_until_full)
    table = load(csv, cache_dir=root)
    np.testing.assert_array_equal(table.images, faces(21))
    assert not table.images.flags.writeable
    (message,) = warnings_in(caplog)
    assert "No space left" in message
    assert not list((root / f"v{cache_module.FORMAT}" / "tables").iterdir())


LOAD = """
import sys
from pathlib import Path
from fer_lightning.data.readers.sources import load
table = load(sys.argv[1], cache_dir=Path(sys.argv[2]))
print(table.fingerprint, int(table.images.sum()), len(table))
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_start_together(tmp_path: Path, root: Path, damaged: bool) -> None:
    path = write_zip(tmp_path / "faces.zip", folder_files({"sad": 60, "happy": 60}))
    if damaged:
        load(path, cache_dir=root)
        damage(entry(root, ".npy"), "flipped")
    command = [sys.executable, "-c", LOAD, str(path), str(root)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ends = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == 4 * [0], ends
    assert ends == [(f"{load(path, cache_dir=root).fingerprint} {int(faces(240).sum())} 240\n", "")] * 4
    assert entry(root).stem == load(path, cache_dir=root).fingerprint


def test_leftovers_of_killed_processes_are_removed(csv: Path, root: Path) -> None:
    tables = root / f"v{cache_module.FORMAT}" / "tables"
    old, new = tables / ".old", tables / ".new"
    tables.mkdir(parents=True)
    for left in (old, new):
        left.touch()
    os.utime(old, (0, 0))
    load(csv, cache_dir=root)
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["fer2013.csv.gz", pytest.param("fer2013-folder.zip", marks=pytest.mark.slow)])
def test_cached_real_data_opens_in_0_2_s(
    fer2013_dir: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    root = tmp_path_factory.mktemp("open")
    load(fer2013_dir / name, cache_dir=root)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load(fer2013_dir / name, cache_dir=root)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2
