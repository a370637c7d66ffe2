"""A file of weights in an object store is fetched once per node, and again where it changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ltcore.errors import CheckpointError
from ltcore.models.net import ModelConfig
from ltcore.training.weights_file import node_file, refuse_other_weights, sha256, tensors

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

    model = ModelConfig(name="resnet50", weights=uri)
    before = {"weights": uri, "sha256": sha256(first)}
    refuse_other_weights("run", before, model)
    put(2.0, 300)  # of another size, as the time that a store tells may be of whole seconds
    assert tensors(node_file(uri))["weight"].tolist() == [2.0] * 300
    with pytest.raises(CheckpointError, match=r"^run started from weights with sha256 .*s3://.*/net.pth leads to"):
        refuse_other_weights("run", before, model)
    bucket.client.delete_object(Bucket=bucket.name, Key="net.pth")
    refuse_other_weights("run", before, model)
