"""As much of a W&B server as a run needs, on a port of this machine; it can refuse, break and go away."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ME = {"id": "u1", "entity": "me", "username": "me", "email": "me@example.org", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "p1", "name": "p", "entity": {"id": "e1", "name": "me"}}
BUCKET = {"id": "b1", "displayName": "run", "config": "{}", "project": PROJECT, "historyLineCount": 0}
ANSWERS: dict[str, Any] = {
    "Viewer": {"viewer": ME},
    "RunResumeStatus": {"model": None},
    "CreateRunFiles": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []}},
}
CLOSES = 0


class Server:
    """``status_of(operation)``: 200, an error of HTTP, or ``CLOSES``; ``asked``: the operations so far."""

    def __init__(self, status_of: Callable[[str], int]) -> None:
        self.status_of = status_of
        self.asked: list[str] = []
        self.url = ""


def _answer(operation: str, variables: dict[str, Any]) -> Any:
    if operation == "UpsertBucket":
        return {"upsertBucket": {"bucket": {**BUCKET, "name": variables["name"]}, "inserted": True}}
    return ANSWERS.get(operation)


@contextlib.contextmanager
def serve(status_of: Callable[[str], int]) -> Iterator[Server]:
    server = Server(status_of)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            question = json.loads(body) if self.path == "/graphql" else {}
            operation = question.get("operationName", self.path)
            server.asked.append(operation)
            status = server.status_of(operation)
            if status == CLOSES:
                self.connection.close()
                return
            answer = json.dumps({"data": _answer(operation, question.get("variables", {}))}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
