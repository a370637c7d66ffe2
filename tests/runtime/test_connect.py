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
from typing import Any

import grpc
import pytest
from ray._common.utils import get_ray_address_file
from ray._private.node import Node
from ray.core.generated.gcs_service_pb2 import GetClusterIdReply
from ray.core.generated.gcs_service_pb2_grpc import (
    NodeInfoGcsServiceServicer,
    add_NodeInfoGcsServiceServicer_to_server,
)

from ltcore.errors import ConfigError, LtcoreError
from ltcore.runtime import cluster
from ltcore.runtime import cluster_address as addresses
from ltcore.runtime.cluster_address import cluster_address, current_cluster_file

CONNECT = """
import os, sys
import ray  # as a program does that uses Ray itself
from ltcore.runtime.cluster import connect

connect()
import psutil  # Ray brings it

me = psutil.Process()
ports = [c.laddr for p in (me, *me.children(recursive=True)) for c in p.net_connections("tcp") if c.status == "LISTEN"]
print(sorted({address.ip.removeprefix("::ffff:") for address in ports}), flush=True)
print("environment of workers:", dict(ray.get_runtime_context().runtime_env), flush=True)
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
    """Nor does `uv run`, which Ray looks for among its ancestors, make workers rebuild the environment. A shell stands in for
    uv, which may not be here."""
    home = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    (tmp_path / "run").write_text('"$@"\nexit $?\n')
    with subprocess.Popen(
        ["uv", "run", sys.executable, "-c", CONNECT],
        executable="/bin/sh",
        cwd=tmp_path,
        env=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == "['127.0.0.1']"
        assert owner.stdout.readline().strip() == "environment of workers: {}"
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
    """The file in which Ray would note its cluster; nothing is noted, and no variable is set."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", *AUTHENTICATION):
        monkeypatch.setenv(name, "")  # so that what the code sets goes again
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(addresses, "CONNECT_S", 0.5)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN = "0123456789abcdef" * 4


class Gcs(NodeInfoGcsServiceServicer):
    """The part of a cluster's head that drivers ask first."""

    def __init__(self, token: str) -> None:
        self.token = token

    def GetClusterId(self, request: Any, context: Any) -> Any:
        shown = dict(context.invocation_metadata()).get("authorization")
        if self.token and shown != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return GetClusterIdReply(cluster_id=b"1" * 28)


@pytest.fixture
def serve() -> Iterator[Callable[[Gcs | None], str]]:
    """Starts a head, or a gRPC server of another kind, on all interfaces as Ray does; returns its address."""
    servers: list[Any] = []

    def start(gcs: Gcs | None) -> str:
        server = grpc.server(ThreadPoolExecutor(1))
        if gcs is not None:
            add_NodeInfoGcsServiceServicer_to_server(gcs, server)
        port = server.add_insecure_port("0.0.0.0:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture
def head(serve: Callable[[Gcs | None], str]) -> str:
    """Address of the head of a cluster without authentication."""
    return serve(Gcs(""))


def test_only_a_cluster_that_answers_is_joined(nowhere: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of `ray start`, or RAY_ADDRESS; a private Ray of another program is neither."""
    assert cluster_address() == ""
    nowhere.write_text(head)
    assert cluster_address() == head
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address() == "", "Ray's own word for a private one"
    monkeypatch.setenv("RAY_ADDRESS", head)
    assert cluster_address() == head
    monkeypatch.delenv("RAY_ADDRESS")
    nowhere.write_text("127.0.0.1:1")
    assert cluster_address() == "", "the note of a cluster that has ended"
    nowhere.write_text("no address")
    assert cluster_address() == ""


@pytest.mark.parametrize("meant", ["bootstrap", "auto"])
@pytest.mark.parametrize("note", ["127.0.0.1:1", ""])
def test_nothing_is_started_beside_a_cluster(
    nowhere: Path, meant: str, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where its note is gone, or is another user's."""
    if note:
        nowhere.write_text(note)
    if meant == "bootstrap":
        Path.home().joinpath("ray_bootstrap_config.yaml").write_text("{}")
    else:
        monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match=r"This machine belongs to a cluster, but no Ray answers (at|here)"):
        cluster_address()


@pytest.mark.parametrize("names", [{}, {"TMPDIR": "/scratch"}, {"TMPDIR": "/scratch", "RAY_TMPDIR": "/short"}])
def test_the_note_is_where_ray_leaves_it(names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert str(current_cluster_file()) == get_ray_address_file(None)


def test_the_token_of_the_machine_is_shown_as_ray_shows_it(
    nowhere: Path, serve: Callable[[Gcs | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray start` takes a token that lies in the home directory, whether or not RAY_AUTH_MODE is set."""
    address = serve(Gcs(TOKEN))
    nowhere.write_text(address)
    asks = "asks for a token, and this machine has none or another one. Set RAY_AUTH_MODE=token"
    with pytest.raises(ConfigError, match=asks):
        cluster_address()
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(TOKEN)
    assert cluster_address() == address
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "guess"}):
        for name, value in wrong.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=asks):
            cluster_address()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    file.unlink()
    with pytest.raises(ConfigError, match=asks):
        cluster_address()


def silent() -> tuple[str, Callable[[], None]]:
    server = socket.create_server(("", 0))
    return f"127.0.0.1:{server.getsockname()[1]}", server.close


def web() -> tuple[str, Callable[[], None]]:
    server = http.server.ThreadingHTTPServer(("", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}", server.shutdown


@pytest.mark.parametrize(
    "listener", [silent, web, lambda: ("127.0.0.1:1", lambda: None)], ids=["silent", "web", "none"]
)
def test_something_else_at_the_address_is_named_soon(
    nowhere: Path, listener: Callable[[], tuple[str, Callable[[], None]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, end = listener()
    refused_soon(address, monkeypatch)
    end()


def test_another_server_of_the_same_protocol_is_no_head(
    nowhere: Path, serve: Callable[[Gcs | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node of Ray has several ports of this kind."""
    refused_soon(serve(None), monkeypatch)


def refused_soon(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=rf"no Ray answers at {address}.*correct or unset RAY_ADDRESS"):
        cluster_address()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:port", "a b:1"])
def test_an_address_of_another_kind_is_refused_by_name(
    nowhere: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS={address}: expected host:port"):
        cluster_address()


@pytest.mark.parametrize("address", ["http://me:pa55word@head:8265", "ray://me:pa55/word@head:1", "me:pa55word@head:1"])
def test_a_password_in_the_address_is_not_repeated(
    nowhere: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=head:\d+: expected host:port") as error:
        cluster_address()
    assert "pa55" not in str(error.value)


@pytest.mark.parametrize("whose", ["note", "folder", "link", "pipe"])
def test_the_note_of_another_user_is_no_invitation(
    nowhere: Path, head: str, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it read: it may never end."""
    if whose == "link":
        (nowhere.parent / "real").write_text(head)
        nowhere.symlink_to("real")
    else:
        os.mkfifo(nowhere) if whose == "pipe" else nowhere.write_text(f"\x1b[31m{head}")
        lstat = Path.lstat

        def of_another(path: Path) -> os.stat_result:
            found = list(lstat(path))
            if path == (nowhere.parent if whose == "folder" else nowhere):
                found[4] = os.getuid() + 4711  # st_uid
            return os.stat_result(found)

        monkeypatch.setattr(Path, "lstat", of_another)
    with pytest.warns(UserWarning, match=r"belongs to another user.*RAY_ADDRESS") as warned:
        assert cluster_address() == ""
    assert "\x1b" not in str(warned[0].message)


def test_a_machine_that_is_no_node_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_node_ids", list)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("it would look for a node for a minute"))
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379 has no node on this machine.*ray submit"):
        cluster._join("10.0.0.1:6379", {})


def test_what_ray_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("Version mismatch:\n    Ray: 2.59\n    Python: 3.12")

    monkeypatch.setattr("ray._private.services.find_node_ids", lambda: ["a"])
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ConfigError, match=r"cannot join it: Version mismatch: Ray: 2\.59 Python: 3\.12$"):
        cluster._join("10.0.0.1:6379", {})


def test_a_folder_with_a_name_too_long_for_sockets_is_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch systems make such folders; Ray itself finds out."""
    folder = nowhere.parent / "of-a-batch-system" / ("job" * 20)
    folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(ConfigError, match=rf"{folder}/ray is too long .* set RAY_TMPDIR to a short one"):
        cluster.connect()


@pytest.mark.parametrize("late", [1, 2])
def test_a_ray_that_is_late_is_ended_and_tried_once_more(
    nowhere: Path, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Node] = []
    ended: list[Node] = []

    class Late(Node):
        """Ray's node, whose constructor starts processes and then waits for them."""

        def __init__(self) -> None:
            starts.append(self)
            if len(starts) <= late:
                raise Exception("The current node timed out during startup. This could happen because ...")

        def kill_all_processes(self, *_: Any, **__: Any) -> None:
            ended.append(self)

    monkeypatch.setattr("ray.init", lambda **_: Late())
    if late == 1:
        cluster._start(4, {})
    else:
        with pytest.raises(LtcoreError, match=r"Ray did not start .* tried 2 times.*The same command continues\.$"):
            cluster._start(4, {})
    assert len(starts) == 2
    assert ended == starts[:late]


def test_what_else_ends_the_start_of_a_ray_is_neither_hidden_nor_repeated(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []

    def init(**_: Any) -> None:
        starts.append("once")
        raise Exception("The current node has not been ...")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(Exception, match="has not been"):
        cluster._start(4, {})
    assert starts == ["once"]


def test_a_ray_that_the_program_started_itself_is_left_as_it_is(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a process whose connections meet another token."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(cluster, "_describe", lambda ray, *, local, real: (local, real))
    monkeypatch.setattr(cluster, "cluster_address", lambda: pytest.fail("it has one"))
    monkeypatch.setattr("ray.shutdown", lambda: pytest.fail("it goes on"))
    assert cluster.connect()[0] is False  # type: ignore[index]  # not a Cluster here
    cluster.disconnect()
    assert not set(AUTHENTICATION) & set(os.environ)
