"""Downloading the detector's file."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fer_lightning.errors import UserError
from fer_lightning.inference.faces import download as module
from fer_lightning.inference.faces.download import FILES, cached_path, download, installed

CONTENT = b"the expected bytes" * 1000

SILENCE_S = 10
"""Seconds for which the silent address keeps a connection without an answer."""


class Server(ThreadingHTTPServer):
    """Answers every path with the status and bytes given for it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.closing = threading.Event()
        self.answers: dict[str, tuple[int, bytes, int | None]] = {}
        self.asked: list[str] = []
        self.silent = ""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == self.server.silent:
            self.server.closing.wait(SILENCE_S)
            return
        status, data, length = self.server.answers.get(self.path, (404, b"", None))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the two addresses of the file "blaze", which stands for CONTENT here; nothing is there at first."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        digest, addresses = hashlib.sha256(CONTENT).hexdigest(), (f"{server.url}/first", f"{server.url}/second")
        file = replace(FILES["blaze"], size=len(CONTENT), sha256=digest, addresses=addresses)
        monkeypatch.setitem(FILES, "blaze", file)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


def files() -> list[Path]:
    root = cached_path().parent
    return sorted(root.iterdir()) if root.exists() else []


def test_file_is_downloaded_once_into_the_cache(server: Server) -> None:
    server.answers["/first"] = (200, CONTENT, None)
    assert installed() is None
    path = download("blaze")
    assert path == cached_path() == installed()
    assert path.is_relative_to(os.environ["FER_LIGHTNING_CACHE"])
    assert path.read_bytes() == CONTENT and files() == [path]
    assert download("blaze") == path
    assert server.asked == ["/first"]


@pytest.mark.parametrize(
    "first", [(404, b"", None), (500, b"", None), (200, b"wrong", None), (200, CONTENT[:99], 18000)]
)
def test_second_address_serves_where_the_first_fails(first: tuple[int, bytes, int | None], server: Server) -> None:
    server.answers |= {"/first": first, "/second": (200, CONTENT, None)}
    assert download("blaze").read_bytes() == CONTENT
    assert server.asked == ["/first", "/second"]


@pytest.mark.parametrize("wrong", [b"", b"wrong", CONTENT[:-1], CONTENT + b"!", b"x" * len(CONTENT)])
def test_wrong_bytes_are_not_kept(wrong: bytes, server: Server) -> None:
    server.answers |= {"/first": (200, wrong, None), "/second": (200, wrong, None)}
    with pytest.raises(UserError, match="not the expected file") as raised:
        download("blaze")
    assert "\n" not in str(raised.value)
    assert files() == [] and installed() is None


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as raised:
        download("blaze")
    message = str(raised.value)
    assert "\n" not in message
    for part in (f"{server.url}/first", f"{server.url}/second", "download blaze --from FILE", str(cached_path())):
        assert part in message
    assert files() == []


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    server.silent, server.answers["/second"] = "/first", (200, CONTENT, None)
    started = time.perf_counter()
    assert download("blaze").read_bytes() == CONTENT
    assert server.asked == ["/first", "/second"] and time.perf_counter() - started < SILENCE_S


def test_a_damaged_file_is_replaced(server: Server) -> None:
    server.answers["/first"] = (200, CONTENT, None)
    download("blaze").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged"):
        installed()
    assert download("blaze").read_bytes() == CONTENT


def test_a_file_had_by_other_means_is_checked(server: Server, tmp_path: Path) -> None:
    own = tmp_path / "own.tflite"
    for wrong in (b"", b"wrong", CONTENT + b"!"):
        own.write_bytes(wrong)
        with pytest.raises(UserError, match=r"own\.tflite is not face_detection_full_range\.tflite"):
            download("blaze", source=own)
        assert files() == []
    own.write_bytes(CONTENT)
    assert download("blaze", source=own).read_bytes() == CONTENT
    assert own.read_bytes() == CONTENT and server.asked == []


def test_a_missing_file_or_folder_is_one_line(server: Server, tmp_path: Path) -> None:
    for source in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match=tmp_path.name):
            download("blaze", source=source)


def test_a_cache_that_cannot_be_written_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.answers["/first"] = (200, CONTENT, None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FER_LIGHTNING_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set FER_LIGHTNING_CACHE to a writable folder"):
        download("blaze")


def test_other_names_are_one_line() -> None:
    with pytest.raises(UserError, match="'retinaface' cannot be downloaded: use blaze"):
        download("retinaface")


def test_addresses_are_pinned_and_secure() -> None:
    for address in FILES["blaze"].addresses:
        assert address.startswith("https://") and "@0.4.1657300184/" in address


@pytest.mark.slow
def test_digest_is_that_of_the_published_file(blaze_file: Path) -> None:
    data = blaze_file.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (FILES["blaze"].size, FILES["blaze"].sha256)
