"""A file of weights in an object store is fetched once per node, and again where it changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ltcore import storage
from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError
from ltcore.training.same_start import refuse_other_weights
from ltcore.training.weights_file import node_file, sha256, tensors, whole_file
from tests.paths import ROOT

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]


def test_it_is_fetched_once_per_node(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "node"))
    uri, here = f"{bucket.uri}/net.pth", tmp_path / "net.pth"

    def put(value: float, count: int) -> None:
        torch.save({"weight": torch.full((count,), value)}, here)
        bucket.client.put_object(Bucket=bucket.name, Key="net.pth", Body=here.read_bytes())

    with pytest.raises(CheckpointError, match=r"model.weights=s3://.*/net.pth does not exist"):
        node_file(uri)
    put(1.0, 3)
    first = node_file(uri)
    assert first == node_file(uri) and first.is_relative_to(tmp_path / "node")
    gets = [path for method, path in bucket.server.requests.seen if method == "GET" and path.endswith("net.pth")]
    assert len(gets) == 1
    assert sha256(first) == sha256(here) and tensors(first)["weight"].tolist() == [1.0] * 3

    cfg = RunConfig.from_dict({"name": "r", "data": {"uri": "d"}, "model": {"name": "resnet50", "weights": uri}})
    before = {"weights": uri, "sha256": sha256(first)}
    refuse_other_weights("run", before, cfg)
    put(2.0, 300)  # of another size, as the time that a store tells may be of whole seconds
    assert tensors(node_file(uri))["weight"].tolist() == [2.0] * 300
    with pytest.raises(CheckpointError, match=r"^run started from weights with hash .*s3://.*/net.pth leads to"):
        refuse_other_weights("run", before, cfg)
    bucket.client.delete_object(Bucket=bucket.name, Key="net.pth")
    refuse_other_weights("run", before, cfg)


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.fixture
def stored(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, bytes]:
    """Address and content of a file of weights in a store, and an empty node."""
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "node"))
    torch.save({"weight": torch.ones(300)}, tmp_path / "net.pth")
    bucket.put("net.pth", (tmp_path / "net.pth").read_bytes())
    return f"{bucket.uri}/net.pth", (tmp_path / "net.pth").read_bytes()


def test_a_damaged_copy_is_fetched_again(stored: tuple[str, bytes], caplog: pytest.LogCaptureFixture) -> None:
    uri, content = stored
    copy, digest = whole_file(uri)
    damage(copy)
    cfg = RunConfig.from_dict({"name": "r", "data": {"uri": "d"}, "model": {"name": "resnet50", "weights": uri}})
    refuse_other_weights("run", {"weights": uri, "sha256": digest}, cfg)  # which is the store's, and no other
    assert caplog.text.count(f"this node's copy {copy} was damaged and is fetched again") == 1
    assert copy.read_bytes() == content and whole_file(uri) == (copy, digest)
    assert len(caplog.records) == 1


def test_a_disk_that_damages_the_next_copy_too_is_named(
    stored: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = stored
    copy = node_file(uri)
    damage(copy)
    replace = Path.replace

    def spoiled(self: Path, target: Path) -> Path:
        if target == copy:
            damage(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spoiled)
    with pytest.raises(
        CheckpointError, match=rf"copy {copy} is damaged, also after it was fetched again\. Check this node"
    ):
        whole_file(uri)


KILLED = """
import os, sys
from ltcore import storage
from ltcore.training import weights_file
module = storage if sys.argv[1] == "sync_to_disk" else weights_file
setattr(module, sys.argv[1], lambda *_: os._exit(7))
weights_file.node_file(sys.argv[2])
"""


@pytest.mark.parametrize(
    "at", ["sync_to_disk", *(pytest.param(at, marks=pytest.mark.slow) for at in ("download", "sha256"))]
)
def test_what_a_killed_process_had_begun_to_fetch_is_never_taken(
    stored: tuple[str, bytes], at: str, tmp_path: Path
) -> None:
    uri, content = stored
    command = [sys.executable, "-c", KILLED, at, uri]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode == 7
    assert not list((tmp_path / "node").rglob("net.pth"))
    copy = node_file(uri)
    assert copy.read_bytes() == content
    assert sorted(path.name for path in copy.parent.iterdir()) == ["net.pth", "net.pth.sha256"]


def test_what_a_killed_process_had_begun_to_fetch_goes_with_the_next_that_looks(stored: tuple[str, bytes]) -> None:
    uri, _ = stored
    torn = node_file(uri).with_name(f".{'0' * 32}.net.pth")
    torn.touch()
    node_file(uri)
    assert torn.exists(), "somebody may still write it"
    os.utime(torn, (0, 0))
    node_file(uri)
    assert not torn.exists() and node_file(uri).exists()


def test_what_was_fetched_is_on_the_disk_before_it_has_its_name(
    stored: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(storage, "sync_to_disk", lambda path: synced.append(path.name))
    copy = node_file(stored[0])
    assert any(name.endswith(".net.pth") for name in synced) and copy.parent.name in synced
