"""A shard of remote data is downloaded by one of the nodes that decode, and the batches are those of any other reader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltcore.data.shards.source import Sample
from tests.data.small import tiny_png
from tests.paths import ROOT
from tests.s3 import Bucket
from tests.shards import write_dataset

pytest_plugins = ["tests.s3"]
SHARDS = 44


@pytest.mark.ray
@pytest.mark.slow
def test_each_shard_is_downloaded_once_in_a_cluster(bucket: Bucket, tmp_path: Path) -> None:
    samples = [Sample(f"k{n}", tiny_png(n), "png", n % 3) for n in range(6 * SHARDS)]
    for place in (f"{bucket.uri}/set", tmp_path / "copy"):
        fields = {"splits": {"train": samples}, "image_size": 4, "shard_size": 6}
        write_dataset(place, classes=["a", "b", "c"], **fields)
    before = len(bucket.server.requests.seen)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.runtime.stream_nodes",
            f"{bucket.uri}/set",
            str(tmp_path / "copy"),
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, **bucket.server.environment, "LTCORE_CACHE": str(tmp_path / "head")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    hashes = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("streamed ", "read ")))
    assert hashes["streamed"] == hashes["read"]
    read = [path for method, path in bucket.server.requests.seen[before:] if method == "GET"]
    tars, indexes = ([path for path in read if path.endswith(ending)] for ending in (".tar", ".parquet"))
    assert len(set(tars)) == SHARDS
    assert len(tars) <= 1.1 * SHARDS, "before, each of three nodes downloaded each shard"
    assert len(indexes) <= 1.1 * SHARDS
    kept = [len(list((tmp_path / f"node{n}" / "shards").glob("*.tar"))) for n in range(3)]
    assert sum(kept) == len(tars) and min(kept) >= SHARDS // 6, kept
    assert not list((tmp_path / "head").glob("shards/*.tar")), "the worker itself reads no image"
