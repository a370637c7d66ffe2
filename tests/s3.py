"""An S3 server of the tests' own, reached as a real one is: through the environment, which subprocesses inherit.

A test file takes its fixtures with ``pytest_plugins = ["tests.s3"]``.
"""

from __future__ import annotations

import itertools
import logging
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from ltcore import stores

_REQUEST = re.compile(r'"?(?P<method>[A-Z]+) (?P<path>/\S*) HTTP')
_numbers = itertools.count()


class Requests(logging.Filter):
    """Every request that the server answered, as (method, path), and whoever wants to know at once.

    A filter of the server's log that lets nothing through; unlike a handler it holds no lock while listeners ask the server.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []
        self.listeners: list[Callable[[str, str], None]] = []

    def filter(self, record: logging.LogRecord) -> bool:
        found = _REQUEST.search(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))
        if found:
            self.seen.append((found["method"], found["path"]))
            for listener in list(self.listeners):
                listener(found["method"], found["path"])
        return False


@dataclass(frozen=True)
class Server:
    """The server and what the environment must say to reach it."""

    endpoint: str
    requests: Requests
    environment: dict[str, str] = field(default_factory=dict)

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Points this process, and those it starts, to the server and to nobody's account."""
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            patch.delenv(name, raising=False)
        for name, value in self.environment.items():
            patch.setenv(name, value)

    def check_keys(self, on: bool) -> None:
        """From now on only access keys that the server gave out are good; it gave out none."""
        allowed = b"0" if on else b"inf"
        header = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", allowed, header)
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, seen through another client than ltcore's."""

    name: str
    server: Server
    client: Any

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def names(self, prefix: str = "") -> list[str]:
        """Names of the objects; an object store's folders are names that end with a slash, and are left out."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key for key in found if not key.endswith("/")]

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.client.delete_object(Bucket=self.name, Key=key)

    def download(self, prefix: str, target: Path) -> Path:
        """A local copy of everything below the prefix."""
        for key in self.names(f"{prefix}/"):
            file = target / key[len(prefix) + 1 :]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.get(key))
        return target

    def reads(self, ending: str) -> int:
        """How often objects of this bucket whose names end so were downloaded."""
        paths = [path.partition("?")[0] for method, path in self.server.requests.seen if method == "GET"]
        return sum(path.startswith(f"/{self.name}/") and path.endswith(ending) for path in paths)


def make_bucket(server: Server) -> Bucket:
    key = server.environment
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=key["AWS_DEFAULT_REGION"],
        aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
    )
    name = f"bucket-{next(_numbers)}"
    client.create_bucket(Bucket=name)
    return Bucket(name, server, client)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """The server, one for each process of the tests."""
    logger, requests = logging.getLogger("werkzeug"), Requests()
    logger.addFilter(requests)
    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    yield Server(
        endpoint,
        requests,
        {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "a-key-for-tests",
            "AWS_SECRET_ACCESS_KEY": "its-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "NO_PROXY": host,
        },
    )
    running.stop()
    logger.removeFilter(requests)


@pytest.fixture
def bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket that ltcore and its subprocesses reach."""
    s3_server.patch(monkeypatch)
    return make_bucket(s3_server)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ltcore's client of the store wait one second for a byte."""
    monkeypatch.setattr(stores, "ANSWER_S", 1.0)
