"""Starting a local Ray that nobody else can use, and joining a cluster only where one answers."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from ltcore.errors import ConfigError
from ltcore.runtime import cluster

CONNECT = """
import ray  # as a program does that uses Ray itself
from ltcore.runtime.cluster import connect

connect()
print("environment of workers:", dict(ray.get_runtime_context().runtime_env))
ray.shutdown()
"""


@pytest.mark.ray
def test_uv_run_does_not_make_workers_rebuild_the_environment(tmp_path: Path) -> None:
    """Ray looks for an ancestor that was started as `uv run ...`. A shell stands in for it: uv may not be here."""
    program = tmp_path / "connect.py"
    program.write_text(CONNECT)
    (tmp_path / "run").write_text('"$@"\nexit $?\n')
    done = subprocess.run(
        ["uv", "run", sys.executable, str(program)], executable="/bin/sh", cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "environment of workers: {}" in done.stdout


OPEN_TO = """
import os, sys, time
from ltcore.runtime.cluster import connect
connect()
import psutil, ray
me = psutil.Process()
ports = [c.laddr for p in (me, *me.children(recursive=True)) for c in p.net_connections("tcp") if c.status == "LISTEN"]
print(sorted({address.ip.removeprefix("::ffff:") for address in ports}), flush=True)
print(ray.get_runtime_context().gcs_address, flush=True)
print(os.environ["RAY_AUTH_TOKEN"], flush=True)
sys.stdin.read()
ray.shutdown()
"""
JOIN = """
import sys
from ray._raylet import GcsClient
print("joined", GcsClient(address=sys.argv[1]).internal_kv_keys(b"", b"fun"))
"""


@pytest.mark.ray
def test_a_local_ray_listens_on_loopback_alone_and_refuses_who_has_no_token(tmp_path: Path) -> None:
    home = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", OPEN_TO]
    with subprocess.Popen(command, env=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == "['127.0.0.1']"
        address, token = (owner.stdout.readline().strip() for _ in range(2))

        def join(**theirs: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", JOIN, address]
            return subprocess.run(command, env=home | theirs, capture_output=True, text=True, timeout=120)

        assert "joined" in join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token).stdout
        for theirs in ({}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "guess"}):
            done = join(**theirs)
            assert "joined" not in done.stdout and "InvalidAuthToken" in done.stderr, theirs
        assert not (tmp_path / ".ray" / "auth_token").exists()
        owner.communicate()
    assert owner.returncode == 0


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which Ray would note its cluster; nothing is noted, and no variable is set."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.fixture
def head() -> Iterator[str]:
    """Address of a gRPC server, as the head of a cluster is one."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_only_a_cluster_that_answers_is_joined(nowhere: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of `ray start`, or RAY_ADDRESS; a private Ray of another program is neither."""
    assert cluster._cluster_address() == ""
    nowhere.write_text(head)
    assert cluster._cluster_address() == head
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster._cluster_address() == "", "Ray's own word for a private one"
    monkeypatch.setenv("RAY_ADDRESS", head)
    assert cluster._cluster_address() == head
    monkeypatch.delenv("RAY_ADDRESS")
    nowhere.write_text("127.0.0.1:1")
    assert cluster._cluster_address() == "", "the note of a cluster that has ended"
    Path.home().joinpath("ray_bootstrap_config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="This machine belongs to a cluster"):
        cluster._cluster_address()


def silent() -> tuple[str, Callable[[], None]]:
    server = socket.create_server(("127.0.0.1", 0))
    return f"127.0.0.1:{server.getsockname()[1]}", server.close


def web() -> tuple[str, Callable[[], None]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}", server.shutdown


@pytest.mark.parametrize(
    "listener", [silent, web, lambda: ("127.0.0.1:1", lambda: None)], ids=["silent", "web", "none"]
)
def test_something_else_at_the_address_is_named_soon(
    nowhere: Path, listener: Callable[[], tuple[str, Callable[[], None]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, end = listener()
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=rf"no Ray answers at {address}.*correct or unset RAY_ADDRESS"):
        cluster._cluster_address()
    assert time.monotonic() - began < 5
    end()


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:port", "a b:1"])
def test_an_address_of_another_kind_is_refused_by_name(
    nowhere: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS={address}: expected host:port"):
        cluster._cluster_address()


@pytest.mark.parametrize("whose", ["note", "folder", "link"])
def test_the_note_of_another_user_is_no_invitation(
    nowhere: Path, head: str, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if whose == "link":
        (nowhere.parent / "real").write_text(head)
        nowhere.symlink_to("real")
    else:
        nowhere.write_text(head)
        lstat = Path.lstat

        def of_another(path: Path) -> os.stat_result:
            found = list(lstat(path))
            if path == (nowhere if whose == "note" else nowhere.parent):
                found[4] = os.getuid() + 4711  # st_uid
            return os.stat_result(found)

        monkeypatch.setattr(Path, "lstat", of_another)
    with pytest.warns(UserWarning, match=rf"belongs to another user.*RAY_ADDRESS={head}"):
        assert cluster._cluster_address() == ""
