"""data.path as a URL: downloaded once, again after a change, and every failure is one line."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fer_lightning.data.readers import remote
from fer_lightning.data.readers.sources import load
from fer_lightning.errors import UserError
from tests.conftest import Command, Run
from tests.data.conftest import csv_bytes, faces, fer_rows, folder_files, write_zip


class Server(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        downloads: paths of GET requests.
        cut: whether to send less than the declared length.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.downloads, self.cut = folder, list[str](), False
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.downloads.append(self.path)
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        if self.server.cut:
            outputfile.write(source.read()[:-1000])
            self.close_connection = True
        else:
            super().copyfile(source, outputfile)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www/fer2013.csv").write_bytes(csv_bytes(fer_rows()))
    with Server(tmp_path / "www") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def refused(url: str, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        load(url)
    for part in parts:
        assert part in str(caught.value)
    assert str(caught.value).isprintable()


def test_remote_csv_is_downloaded_once(server: Server) -> None:
    url = f"{server.url}/fer2013.csv"
    for _ in range(2):
        table = load(url)
        np.testing.assert_array_equal(table.images, faces(21))
        assert table.source == url
    assert server.downloads == ["/fer2013.csv"]


def test_remote_archive(server: Server, tmp_path: Path) -> None:
    write_zip(server.folder / "download", folder_files())
    table = load(f"{server.url}/download?version=1")
    local = load(server.folder / "download")
    assert table.ids.tolist() == local.ids.tolist()
    np.testing.assert_array_equal(table.images, local.images)


def test_changed_remote_file_is_downloaded_again(server: Server) -> None:
    path = server.folder / "fer2013.csv"
    assert len(load(f"{server.url}/fer2013.csv")) == 21
    path.write_bytes(csv_bytes(fer_rows(14)))
    os.utime(path, (1e9, 1e9))
    assert len(load(f"{server.url}/fer2013.csv")) == 14


def test_earlier_copy_replaces_an_unreachable_server(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{server.url}/fer2013.csv"
    load(url)
    server.shutdown()
    server.server_close()
    assert len(load(url)) == 21
    assert any("cannot be reached" in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    refused(f"{server.url}/other.csv", url.partition("/fer")[0], "cannot be downloaded (Cannot connect", "local path")


def test_message_about_the_content_names_the_url_and_row(server: Server) -> None:
    (server.folder / "bad.csv").write_bytes(csv_bytes(fer_rows(6)) + b"0,1 2 3,Training\n")
    refused(f"{server.url}/bad.csv", f"{server.url}/bad.csv, row 6: 3 pixels")


def test_missing_remote_file(server: Server) -> None:
    refused(f"{server.url}/nothing.csv", "nothing.csv", "there is no such file")


def test_truncated_download_is_no_copy(server: Server, tmp_path: Path) -> None:
    server.cut = True
    refused(f"{server.url}/fer2013.csv", "fer2013.csv", "cannot be downloaded")
    server.cut = False
    assert len(load(f"{server.url}/fer2013.csv")) == 21


def test_too_large_a_file_is_not_downloaded(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="larger than 1,000 bytes"):
        load(f"{server.url}/fer2013.csv", cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        load(f"{server.url}/fer2013.csv", cache_dir=tmp_path / "file")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing://host/fer2013.csv", "Protocol not known: nothing"),
        ("s3://bucket/fer2013.csv", "Install s3fs"),
        ("simplecache::https://host/fer2013.csv", "chained"),
        ("zip://fer2013.csv::https://host/fer2013.zip", "chained"),
    ],
)
def test_unusable_protocols(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused(url, url, message)


def test_audit_of_a_url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("audit", f"{server.url}/fer2013.csv?version=2", "--no-near")[0] == 0
    assert (tmp_path / "audit/fer2013.csv/findings.csv").is_file()


def test_run_with_a_remote_source(server: Server, train: Callable[..., Run]) -> None:
    (server.folder / "fer2013.csv").write_bytes(csv_bytes(fer_rows(63)))
    url = f"{server.url}/fer2013.csv"
    run = train(
        f"data.path={url}", "model=resnet18", "model.width=8", "data.batch_size=8", "trainer.accelerator=cpu",
        "trainer.max_epochs=1", "logger=none", "imbalance=none",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert json.loads((run.folder / "metrics.json").read_text())["data/source"] == url
