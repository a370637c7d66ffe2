"""A cloud's metadata service, as EC2 (with tokens) and Compute Engine have it."""

from __future__ import annotations

import contextlib
import datetime
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TypeVar

T = TypeVar("T")
INSTANCE_ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


def in_seconds(seconds: float) -> str:
    """The time that lies so far ahead, as EC2 writes it."""
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Metadata:
    """What the service says, and what it was asked."""

    endpoint: str = ""
    token: str = "secret"
    accepts_tokens: bool = True
    answers: dict[str, str] = field(default_factory=dict)
    """Path -> answer; all others do not exist."""
    any_answer: str | None = None
    """Answer to everything, as of a portal that wants a login."""
    asked: list[str] = field(default_factory=list)

    def take_back_in(self, seconds: float) -> None:
        """Announces that EC2 ends the instance then."""
        self.answers[INSTANCE_ACTION] = f'{{"action": "terminate", "time": "{in_seconds(seconds)}"}}'


class _Server(socketserver.ThreadingTCPServer):
    """Not http.server's own, which asks for the name of its address: a namespace without a network waits long for that."""

    daemon_threads = allow_reuse_address = True


def _here(listen: Callable[[], T]) -> T:
    return listen()


@contextlib.contextmanager
def metadata_service(
    address: tuple[str, int] = ("127.0.0.1", 0), where: Callable[[Callable[[], _Server]], _Server] = _here
) -> Iterator[Metadata]:
    """Serves until the end of the block, by default on a free port of the loopback address.

    Args:
        where: calls the function that makes the listening socket, in another network namespace if it is of one.
    """
    made = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            wanted = self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            self._answer(made.token if wanted and made.accepts_tokens else None)

        def do_GET(self) -> None:
            found = made.answers.get(self.path)
            known = self.headers.get("X-aws-ec2-metadata-token") == made.token and made.accepts_tokens
            if self.path.startswith("/latest/") and not known:
                self._answer("", status=401)
            elif self.path.startswith("/computeMetadata/") and self.headers.get("Metadata-Flavor") != "Google":
                self._answer("", status=403)
            else:
                self._answer(found)

        def _answer(self, text: str | None, status: int = 200) -> None:
            made.asked.append(f"{self.command} {self.path}")
            if made.any_answer is not None:
                text, status = made.any_answer, 200
            body = (text or "").encode()
            self.send_response(404 if text is None else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a reader with a bound leaves early
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = where(lambda: _Server(address, Handler))
    made.endpoint = f"http://{address[0]}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
