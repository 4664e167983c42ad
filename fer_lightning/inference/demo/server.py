"""The page's server, for this machine only."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fer_lightning.errors import UserError
from fer_lightning.inference.demo.site import site

HOST = "127.0.0.1"

PORT = 8013
"""Where the page is served unless the user chooses another one."""

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "wasm": "application/wasm",
}
"""MIME types by suffix, fixed here since those of `mimetypes` depend on the machine."""


def serve(model: Path, *, port: int = PORT, assets: Path | None = None, open_browser: bool = True) -> None:
    """Serve the page on this machine until Ctrl-C.

    Args:
        model: a network exported as ONNX.
        port: 0 for any free one.
        assets: folder of the libraries; None to let the page load them from a CDN.
        open_browser: show the page in the user's browser.

    Raises:
        UserError: `model` is not such a network, a library is missing, or the port is in use.
    """
    with server(site(model, assets), port) as running:
        address = f"http://{HOST}:{running.server_port}/"
        try:
            print(f"Demo at {address} (Ctrl-C stops it)", flush=True)
            if open_browser:
                # A browser in the terminal would keep this thread, which has to serve the page.
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            running.serve_forever()
        except KeyboardInterrupt:
            print()


def server(files: Mapping[str, bytes], port: int) -> ThreadingHTTPServer:
    """A server, not yet running, of files by name, and of nothing else.

    Raises:
        UserError: the port is in use or not allowed.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = unquote(urlsplit(self.path).path).removeprefix("/") or "index.html"
            content = files.get(name)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", TYPES.get(name.rpartition(".")[2], "application/octet-stream"))
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-cache")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # the page was closed meanwhile
                    self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass  # a line a request would bury the address

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "ports are 0 to 65535"
        raise UserError(f"port {port} cannot be used ({reason}); choose another with --port") from error
