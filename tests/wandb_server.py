"""As much of W&B's server as a run needs to be accepted, and two ways for it to fail."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT = "someone", "faces"


class WandbServer:
    """Listens on this machine until it is closed.

    Attributes:
        url: for WANDB_BASE_URL.
        history: what runs have logged, a row a step.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self._answers = threading.Event()
        self._answers.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def go_away(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def hang(self) -> None:
        """Accept connections from now on, and say nothing."""
        self._answers.clear()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """What W&B answers a request."""
        self._answers.wait()
        if path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            self.history += [json.loads(row) for row in files.get("wandb-history.jsonl", {}).get("content", [])]
        if path != "/graphql":
            return {}
        query = json.loads(body)
        name, variables = query.get("operationName"), query.get("variables") or {}
        if name == "Viewer":
            return {"data": {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "teams": {"edges": []}}}}
        if name == "UpsertBucket":
            project = {"id": "2", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}}
            bucket = {"id": "3", "name": variables["name"], "displayName": "run", "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}}
        if name == "CreateArtifact":  # as if these bytes were there already
            artifact = {"id": "4", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            return {"data": {"createArtifact": {"artifact": artifact}}}
        return {"data": {"project": None}}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):  # HTTP/1.0: no connection outlives its answer
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = json.dumps(server.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST  # noqa: N815 (names that http.server gives)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
