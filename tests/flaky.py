"""A proxy before an object store that answers as stores do on bad days."""

from __future__ import annotations

import contextlib
import http.client
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Answer = Callable[["_Handler", int, bytes], None]


HANGS_S = 10.0
"""Longer than the client waits for a byte."""


class Flaky(ThreadingHTTPServer):
    """Passes requests on to ``endpoint``, except for those that ``fault`` is for."""

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(endpoint).netloc
        self.fault: str = ""
        """'': none. A status, such as '503'. 'hangs': no answer. 'drops': the connection ends at once. 'cut': half of what
        was promised, then the end. 'short': half of it, which the answer calls the whole. 'lost': the store does what it
        is told, and the answer is an error.
        """
        self.only = re.compile("")
        """Method and path of the requests that it is for."""
        self.struck = 0
        """Requests that met the fault."""
        self.left, self.lock = 0, threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def disturbed(self, fault: str, only: str = "") -> Iterator[None]:
        """From now on, requests whose ``METHOD /path`` matches meet the fault."""
        self.strike(10**9, fault, only)
        try:
            yield
        finally:
            self.fault = ""

    def strike(self, times: int, fault: str, only: str = "") -> None:
        """The same for as many requests."""
        self.struck, self.left, self.only, self.fault = 0, times, re.compile(only), fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the middle of a request is no error of the proxy."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def fault_for(self, request: str) -> str:
        """The fault that a request meets."""
        with self.lock:
            fault = self.fault if self.left and self.only.search(request) else ""
            self.struck += bool(fault)
            self.left -= bool(fault)
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Flaky

    def _pass(self) -> None:
        body = self._body()
        fault = self.server.fault_for(f"{self.command} {self.path}")
        if fault in ("hangs", "drops"):
            time.sleep(HANGS_S if fault == "hangs" else 0.0)
            self.close_connection = True
            return
        if fault.isdigit():
            self._send(int(fault), {}, b"")
            return
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        own = ("connection", "transfer-encoding", "expect", "content-length")
        headers = {key: value for key, value in self.headers.items() if key.lower() not in own}
        connection.request(self.command, self.path, body, headers)
        found = connection.getresponse()
        data = found.read()
        connection.close()
        own = ("connection", "transfer-encoding", "date", "server")
        kept = {key: value for key, value in found.getheaders() if key.lower() not in own}
        if fault == "lost":
            self._send(500, {}, b"")
        elif fault in ("cut", "short"):
            half = data[: len(data) // 2]
            self._send(found.status, {**kept, "Content-Length": str(len(data if fault == "cut" else half))}, half)
            self.close_connection = True
        else:
            self._send(found.status, kept, data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return found

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def flaky(endpoint: str) -> Iterator[Flaky]:
    """A running proxy."""
    server = Flaky(endpoint)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.fault = ""
        server.shutdown()
        server.server_close()
