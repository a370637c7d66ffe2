"""Local shards are compared with the manifest's sha256, once on a node."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ltcore.data.loading.canvas_cache import open_canvases
from ltcore.data.shards import verified
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError

HASHED = hashlib.file_digest


@pytest.fixture
def copy(tiny_shards: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_shards, tmp_path / "copy"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the shards that were hashed."""
    sizes: list[int] = []

    def digest(stream: Any, name: str) -> Any:
        sizes.append(os.fstat(stream.fileno()).st_size)
        return HASHED(stream, name)

    monkeypatch.setattr(verified.hashlib, "file_digest", digest)
    yield sizes
    monkeypatch.undo()


def everything(uri: Path, split: str = "val") -> list[bytes]:
    store = ShardStore(str(uri))
    return store.read_rows(split, np.arange(len(store.labels(split))))


def test_a_shard_is_hashed_once_by_all_who_open_it(copy: Path, hashed: list[int]) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert len(set(map(tuple, pool.map(everything, [copy] * 6)))) == 1
    part = read_manifest(str(copy)).split("val")
    assert sorted(hashed) == sorted([part.labels.bytes, *(shard.bytes for shard in part.shards)])


def test_a_shard_that_changed_is_hashed_again(copy: Path, hashed: list[int]) -> None:
    everything(copy)
    shard = copy / read_manifest(str(copy)).split("val").shards[0].path
    before = shard.stat()
    shard.write_bytes(shard.read_bytes())
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))  # as an attacker, or a restored backup, would have it
    everything(copy)
    assert len(hashed) == 4, "the labels, two shards, and the one that was touched"


def test_other_images_with_forged_checksums_are_refused_and_fill_no_cache(copy: Path, tiny_shards: str) -> None:
    """The manifest is genuine, and each row of the tar has the crc32 that the index says."""
    manifest = read_manifest(str(copy))
    shard = manifest.split("val").shards[0]
    row = pq.read_table(copy / shard.index_path).to_pylist()[0]
    tar = bytearray((copy / shard.path).read_bytes())
    image = bytearray(tar[row["offset"] : row["offset"] + row["size"]])
    image[40:50] = b"\xff" * 10
    forge(image, row["crc32"])
    tar[row["offset"] : row["offset"] + row["size"]] = image
    (copy / shard.path).write_bytes(tar)
    assert zlib.crc32(image) == row["crc32"]
    assert read_manifest(str(copy)) == read_manifest(tiny_shards)
    with pytest.raises(DataError, match=rf"{shard.path}: found sha256 .*\. The shard is damaged: restore it"):
        everything(copy)
    with pytest.raises(DataError, match="found sha256"):
        open_canvases(ShardStore(str(copy)), "val", 16, cache_bytes=2**30)
    genuine = open_canvases(ShardStore(tiny_shards), "val", 16, cache_bytes=2**30)
    assert len(genuine.take(np.arange(12))) == 12


def test_a_cache_that_cannot_be_written_hashes_each_time(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "file"))
    assert everything(copy) == everything(copy)
    assert len(hashed) == 6


def forge(data: bytearray, crc32: int) -> None:
    """Sets the last four bytes so that the whole has this crc32: they enter linearly, so 32 equations give their bits."""
    data[-4:] = bytes(4)
    base = zlib.crc32(data)
    columns = []
    for bit in range(32):
        data[-4:] = (1 << bit).to_bytes(4, "little")
        columns.append((zlib.crc32(data) ^ base, 1 << bit))
    wanted, bits = base ^ crc32, 0
    for place in range(32):  # elimination over the integers modulo 2
        pivot = next(number for number, (value, _) in enumerate(columns) if value >> place & 1)
        value, mask = columns.pop(pivot)
        columns = [(v ^ value, m ^ mask) if v >> place & 1 else (v, m) for v, m in columns]
        if wanted >> place & 1:
            wanted, bits = wanted ^ value, bits ^ mask
    data[-4:] = bits.to_bytes(4, "little")
