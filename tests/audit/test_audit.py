"""`fer-lightning audit`: it finds every planted fault and nothing else, and reports invalid input in one line."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_lightning.data.table import FER_CLASSES
from tests.audit.conftest import Audited, Finding
from tests.data.conftest import image_bytes, write_zip

Audit = Callable[..., Audited]


def test_audit_finds_every_planted_fault_in_a_folder_and_no_other(
    audit: Audit, folder: tuple[Path, set[Finding]]
) -> None:
    root, expected = folder
    done = audit(root)
    assert done.code == 0, done.err
    assert done.found == expected
    table = done.findings.set_index(["image", "fault"])
    assert table.loc[("train/sad/tiny.png", "tiny"), "value"] == "20"
    assert "damaged" in table.loc[("train/sad/cut.png", "broken"), "note"]
    assert table.loc[("train/sad/cut.png", "broken"), ["split", "label"]].tolist() == ["train", "sad"]


def test_audit_finds_every_planted_fault_in_a_csv_with_votes_and_no_other(
    audit: Audit, csv: tuple[Path, Path, set[Finding]]
) -> None:
    path, votes, expected = csv
    done = audit(path, "--votes", votes)
    assert done.code == 0, done.err
    assert done.found == expected
    summary = json.loads((done.folder / "summary.json").read_text())
    assert (summary["redundant"], summary["groups"], summary["conflict_groups"]) == (5, 5, 2)
    assert summary["nonface_unanimous"] == 1
    assert summary["leaked"]["all"] == {"images": 87, "identical": 2, "identical or near": 4}
    assert summary["findings"]["leak from public"] == {"train": 0, "public": 0, "private": 1, "all": 1}
    assert "2 of 87 validation and test images (2.3%) are identical to a training image" in done.out


def test_no_near_compares_identical_images_only(
    audit: Audit, csv: tuple[Path, Path, set[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, expected = csv
    monkeypatch.setattr("fer_lightning.audit.write.near_duplicates", None)
    done = audit(path, "--no-near")
    without_votes = {f for f in expected if f[1] not in ("nonface", "disagreement")}
    assert done.found == {f for f in without_votes if f[1] == "near_blank" or not f[1].startswith("near_")}
    assert "near_leak" not in done.out
    assert "Not looked for: near duplicate, near leak, near conflict" in (done.folder / "index.html").read_text()


def test_page_is_self_contained_and_shows_each_fault(audit: Audit, folder: tuple[Path, set[Finding]]) -> None:
    root, expected = folder
    page = audit(root, "--no-near").folder / "index.html"
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|findings\.csv|summary\.json)', text)
    assert "<script" not in text
    for title in ("Broken files", "Tiny files", "Blank", "Near blank", "Dark", "Leak", "Conflict", "Leaks by class"):
        assert f"<h2>{title}</h2>" in text
    shown = text.split("<h2>Conflict</h2>")[1].split("</section>")[0]
    assert shown.count("<img") == 4
    assert page.stat().st_size < 1_000_000
    assert {name for name, fault, _ in expected if fault == "broken"} <= set(
        re.findall(r"[a-z]+/[a-z]+/\w+\.\w+", text)
    )


def test_damaged_members_of_an_archive_are_reported_and_the_rest_is_read(
    audit: Audit, folder: tuple[Path, set[Finding]]
) -> None:
    files = {str(p.relative_to(folder[0])): p.read_bytes() for p in sorted(folder[0].rglob("*.png")) if p.exists()}
    path = write_zip(folder[0].parent / "damaged.zip", files)
    cannot_be_unpacked, cannot_be_opened = [n for n in files if n.startswith("train/happy")][:2]
    with zipfile.ZipFile(path) as archive:
        at = [archive.getinfo(cannot_be_unpacked).header_offset + 30 + len(cannot_be_unpacked) + 200]
        at.append(archive.getinfo(cannot_be_opened).header_offset)
    content = bytearray(path.read_bytes())
    for offset in at:
        content[offset] ^= 255
    path.write_bytes(content)
    done = audit(path, "--no-near")
    assert {(name, "broken", "") for name in (cannot_be_unpacked, cannot_be_opened)} <= done.found
    assert len([f for f in done.found if f[1] == "broken"]) == 4


def test_all_broken_rows_of_a_csv_are_reported_and_the_rest_is_read(
    audit: Audit, csv: tuple[Path, Path, set[Finding]], tmp_path: Path
) -> None:
    from fer_lightning.data.readers.sources import load
    from fer_lightning.errors import UserError

    lines = csv[0].read_text().splitlines()
    n = len(lines) - 1
    emotion, pixels, usage = lines[1].split(",")
    bad = [
        f"{emotion},{pixels} 7,{usage}",
        f"{emotion},{pixels.rpartition(' ')[0]} 256,PrivateTest",
        f"9,{pixels},{usage}",
        f"{emotion},{pixels},Later",
        f"{emotion},{pixels}",
    ]
    path = tmp_path / "bad.csv"
    path.write_text("\n".join([*lines, *bad]) + "\n")
    done = audit(path, "--no-near")
    assert done.code == 0, done.err
    broken = {f"row {n + i}" for i in range(len(bad))}
    assert {f for f in done.found if f[1] == "broken"} == {(name, "broken", "") for name in broken}
    assert {f for f in done.found if f[1] != "broken"} == audit(csv[0], "--no-near").found
    table = audit(path, "--no-near").findings.set_index("image")
    assert table.loc[f"row {n + 1}", ["split", "label"]].tolist() == ["private", FER_CLASSES[int(emotion)]]
    for i, error in enumerate(("2305 pixels", "pixel '256'", "emotion '9'", "Usage 'Later'", "2 values")):
        assert error in table.loc[f"row {n + i}", "note"]
    with pytest.raises(UserError, match="row"):
        load(path)


def test_votes_match_the_rows_of_a_csv_with_broken_ones(
    audit: Audit, csv: tuple[Path, Path, set[Finding]], tmp_path: Path
) -> None:
    lines = csv[0].read_text().splitlines()
    lines[1] = lines[1].replace(" ", " x ", 1)
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines) + "\n")
    done = audit(path, "--no-near", "--votes", csv[1])
    assert done.code == 0, done.err
    assert {("row 0", "broken", ""), ("row 8", "nonface", ""), ("row 9", "disagreement", "")} <= done.found


def test_csv_with_mostly_broken_rows_is_refused(
    audit: Audit, csv: tuple[Path, Path, set[Finding]], tmp_path: Path
) -> None:
    lines = csv[0].read_text().splitlines()
    lines[1] = "x2" + lines[1][1:]  # from now on emotions are names
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines) + "\n")
    done = audit(path, "--no-near")
    assert done.code == 1
    assert re.search(r"row 1: emotion '\d' is no class name.*; nor can \d+ others", done.err)


def test_training_refuses_a_broken_file_after_an_audit(folder: tuple[Path, set[Finding]], audit: Audit) -> None:
    from fer_lightning.data.readers.sources import load
    from fer_lightning.errors import UserError

    audit(folder[0], "--no-near")  # must not leave a cache that a training job would read
    with pytest.raises(UserError, match=r"(cut|empty|gone)\.png|text\.jpg"):
        load(folder[0])


def test_page_escapes_names_and_classes(audit: Audit, tmp_path: Path, planted: list) -> None:  # type: ignore[type-arg]
    files = {f"train/<b>x/{i}&.png": image_bytes(planted[i // 2].pixels) for i in range(4)}
    root = write_zip(tmp_path / "odd.zip", files)
    text = (audit(root).folder / "index.html").read_text()
    assert "<b>x" not in text and "&lt;b&gt;x" in text


def test_relabelling_reads_edited_findings(audit: Audit, csv: tuple[Path, Path, set[Finding]], tmp_path: Path) -> None:
    from fer_lightning.data.protocols import partition
    from fer_lightning.data.quality.cleaning import relabel
    from fer_lightning.data.readers.sources import load

    done = audit(csv[0], "--no-near")
    table = done.findings
    table.loc[table["fault"] == "conflict", "new_label"] = "neutral"
    table.to_csv(tmp_path / "mine.csv", index=False)
    faces = load(csv[0])
    after, _, words, _ = relabel(faces, partition(faces), str(tmp_path / "mine.csv"), {})
    assert words.startswith("2 training images relabelled")  # the other copy as well
    assert (after.labels != faces.labels).sum() == 2


def test_edited_findings_are_not_overwritten(audit: Audit, csv: tuple[Path, Path, set[Finding]]) -> None:
    done = audit(csv[0], "--no-near")
    done = audit(csv[0], "--no-near")
    assert done.code == 0, done.err
    path = done.folder / "findings.csv"
    table = done.findings
    table.loc[0, "new_label"] = "sad"
    table.to_csv(path, index=False)
    content = path.read_bytes()
    refused = audit(csv[0], "--no-near")
    assert refused.code == 1
    assert re.fullmatch(r"error: .*findings\.csv was edited since an audit wrote it, .* --out\n", refused.err)
    assert path.read_bytes() == content
    path.rename(done.folder / "mine.csv")
    assert audit(csv[0], "--no-near").code == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--out", "{csv}/x"), "cannot be written .* --out"), (("--run", "{csv}x"), "not a run folder")],
)
def test_folders_are_checked_before_the_long_search(
    audit: Audit,
    csv: tuple[Path, Path, set[Finding]],
    option: tuple[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fer_lightning.audit.write.near_duplicates", None)  # is not reached
    done = audit(csv[0], *(part.format(csv=csv[0]) for part in option))
    assert done.code == 1 and re.fullmatch(f"error: .*{message}.*\n", done.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{csv}x"], r"does not exist \(did you mean"),
        (["{csv}", "--votes", "{csv}"], "has no column neutral"),
        (["{csv}", "--votes", "{csv}x"], "does not exist"),
        (["{folder}", "--votes", "{votes}"], "does not number its images by the rows of fer2013.csv"),
        (["{csv}", "--no-near", "--out", "{csv}/x"], "cannot be written .* --out"),
    ],
)
def test_invalid_input_is_reported_in_one_line(
    audit: Audit,
    csv: tuple[Path, Path, set[Finding]],
    folder: tuple[Path, set[Finding]],
    arguments: list[str],
    message: str,
) -> None:
    done = audit(*(a.format(csv=csv[0], votes=csv[1], folder=folder[0]) for a in arguments), "--no-near")
    assert done.code == 1
    [line] = done.err.strip().splitlines()
    assert re.match(f"error: .*{message}", line), line


def test_source_of_broken_files_only_is_refused(audit: Audit, tmp_path: Path) -> None:
    write_zip(tmp_path / "faces.zip", {"train/happy/1.png": b"x", "train/sad/2.png": b""})
    done = audit(tmp_path / "faces.zip")
    assert done.code == 1
    assert "nor can 1 others of its 2 images" in done.err
