"""The page's server."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from fer_lightning.errors import UserError
from fer_lightning.inference.demo.server import server

FILES = {
    "index.html": b"<!doctype html>",
    "demo.js": b"export {}",
    "model.onnx": b"\x08",
    "assets/a.wasm": b"\0asm",
    "assets/a.mjs": b"1",
    "assets/a.tflite": b"TFL3",
    "model.json": b"{}",
}


@pytest.fixture(scope="module")
def running() -> Iterator[ThreadingHTTPServer]:
    with server(FILES, 0) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def ask(running: ThreadingHTTPServer, path: str, method: str = "GET") -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", running.server_port, timeout=5)
    with closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html?a=1", "text/html; charset=utf-8"),
        ("/demo.js", "text/javascript; charset=utf-8"),
        ("/assets/a.mjs", "text/javascript; charset=utf-8"),
        ("/assets/a.wasm", "application/wasm"),
        ("/model.onnx", "application/octet-stream"),
        ("/assets/a.tflite", "application/octet-stream"),
        ("/model.json", "application/json"),
    ],
)
def test_files_have_the_types_that_browsers_want(running: ThreadingHTTPServer, path: str, kind: str) -> None:
    content = FILES[path.removeprefix("/").partition("?")[0] or "index.html"]
    assert ask(running, path) == (200, kind, content)
    assert ask(running, path, "HEAD") == (200, kind, b"")


@pytest.mark.parametrize(
    "path", ["/assets", "/assets/", "/../server.py", "/%2e%2e/server.py", "//etc/passwd", "/demo.js/", "/secret"]
)
def test_nothing_else_is_served(running: ThreadingHTTPServer, path: str) -> None:
    assert ask(running, path)[0] == 404


def test_only_this_machine_reaches_it(running: ThreadingHTTPServer) -> None:
    assert running.server_address[0] == "127.0.0.1"
    assert ask(running, "/", "POST")[0] == 501


def test_used_and_impossible_ports_are_one_line(running: ThreadingHTTPServer) -> None:
    with pytest.raises(UserError, match=rf"port {running.server_port} cannot be used .*--port"):
        server(FILES, running.server_port)
    with pytest.raises(UserError, match="0 to 65535"):
        server(FILES, 99_999)


def test_serve_prints_the_address_and_stops_on_interrupt(network: Path) -> None:
    code = (  # with a browser in the terminal, which ends when its user says so
        "import signal, sys, time, webbrowser; from pathlib import Path; "
        "from fer_lightning.inference.demo import serve; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's background jobs ignore it
        "webbrowser.open = lambda address: time.sleep(100); serve(Path(sys.argv[1]), port=0); print('end')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, network], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout
        address = process.stdout.readline().split()[2]
        port = int(address.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.read().endswith("end\n")
    assert process.returncode == 0
