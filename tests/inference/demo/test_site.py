"""What is written for a static site."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fer_lightning.errors import UserError
from fer_lightning.inference.demo import build
from fer_lightning.inference.demo.libraries import LIBRARIES
from tests.inference.demo.conftest import CLASSES, DESCRIPTION, RULE, write_network

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_build_writes_the_page_and_the_network(network: Path, tmp_path: Path) -> None:
    build(network, tmp_path / "a" / "site")
    site = tmp_path / "a" / "site"
    assert (site / "model.onnx").read_bytes() == network.read_bytes()
    about = json.loads((site / "model.json").read_text())
    assert about["classes"] == CLASSES
    assert about["crop"] == RULE
    assert about["scores"] == {"test/accuracy": 0.7012}
    page = (site / "index.html").read_text()
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (site / name).is_file(), name
    for script in site.glob("*.js"):
        for name in re.findall(r'(?:from|import) ?\(?"\./([^"]+)"', script.read_text()):
            assert (site / name).is_file(), f"{script.name} imports {name}"
    assert (site / "README.md").read_text().startswith("---\n")


def test_libraries_come_from_pinned_versions(network: Path, tmp_path: Path) -> None:
    build(network, tmp_path)
    libraries = json.loads((tmp_path / "model.json").read_text())["libraries"]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (tmp_path / "index.html").read_text())
    assert policy and "default-src &#x27;none&#x27;" in policy[1]
    for library in libraries.values():
        assert re.fullmatch(r"sha256-[A-Za-z0-9+/]{43}=", library["integrity"])
        assert len(library["urls"]) == 2
        for url in library["urls"]:
            assert re.search(r"@\d+\.\d+\.\d+/", url), "no exact version"
            assert any(url.startswith(allowed) for allowed in re.split(r"[; ]+", policy[1]) if "://" in allowed)


def test_build_replaces_an_earlier_build_and_keeps_what_belongs_to_the_repository(
    network: Path, tmp_path: Path
) -> None:
    build(network, tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / ".DS_Store").touch()
    for name in ("CNAME", ".nojekyll", ".DS_Store"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "demo.js").write_text("old")
    build(network, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / ".git" / "HEAD").read_text() == "ref"
    assert (tmp_path / "demo.js").read_text() != "old"


def test_build_refuses_a_file_and_a_folder_of_other_things(network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: is a file"):
        build(network, tmp_path / "file")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds .*, no file of this page; choose an empty folder"):
        build(network, tmp_path)
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "not one that `fer-lightning export` wrote"),
        ("{", "its description is damaged"),
        ({**DESCRIPTION, "format": 2}, "written by a newer version of fer-lightning .format 2."),
        ({**DESCRIPTION, "crop": {}}, "no crop rule for blaze"),
        ({**DESCRIPTION, "calibration": {"threshold": "high"}}, "its description is damaged"),
        ([], "its description is damaged"),
    ],
)
def test_networks_of_others_are_refused(description: Any, message: str, tmp_path: Path) -> None:
    path = write_network(tmp_path / "other.onnx", description)
    with pytest.raises(UserError, match=message) as caught:
        build(path, tmp_path / "site")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "site").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        build(tmp_path / "none.onnx", tmp_path / "site")
    (tmp_path / "photo.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" * 9)
    with pytest.raises(UserError, match="damaged, or not an ONNX file"):
        build(tmp_path / "photo.onnx", tmp_path / "site")
    path = write_network(tmp_path / "other.onnx", output="scores")
    with pytest.raises(UserError, match="not one that"):
        build(path, tmp_path / "site")


def test_page_knows_the_threshold(tmp_path: Path) -> None:
    path = write_network(tmp_path / "toy.onnx", {**DESCRIPTION, "calibration": {"temperature": 1.2, "threshold": 0.61}})
    build(path, tmp_path / "site")
    assert json.loads((tmp_path / "site" / "model.json").read_text())["threshold"] == 0.61


def test_missing_and_changed_libraries_are_refused(network: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        build(network, tmp_path / "site", assets=tmp_path / "none")
    folder = tmp_path / "assets"
    folder.mkdir()
    with pytest.raises(UserError, match=r"does not contain \S+: run `npm pack onnxruntime-web@1"):
        build(network, tmp_path / "site", assets=folder)
    (folder / LIBRARIES["runtime"].name).write_text("export default 1")
    with pytest.raises(UserError, match="another version of"):
        build(network, tmp_path / "site", assets=folder)
    (folder / "broken.tgz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UserError, match=r"has damaged files, broken\.tgz \(.*: remove them, and run `npm pack"):
        build(network, tmp_path / "site", assets=folder)
    assert not (tmp_path / "site").exists()


@pytest.mark.slow
def test_libraries_become_part_of_the_site(network: Path, assets: Path, tmp_path: Path) -> None:
    build(network, tmp_path / "site", assets=assets)
    (tmp_path / "site" / "broken.tgz").write_bytes(b"\x1f\x8b\x08")  # of another package
    build(network, tmp_path / "again", assets=tmp_path / "site")  # the files themselves will do as well
    assert names(tmp_path / "again") == names(tmp_path / "site")
    assert {f"assets/{library.name}" for library in LIBRARIES.values()} <= names(tmp_path / "site")
    (tmp_path / "site" / "broken.tgz").unlink()
    build(network, tmp_path / "site")  # an earlier build with libraries is no obstacle
    assert "https://" not in (tmp_path / "again" / "index.html").read_text()
