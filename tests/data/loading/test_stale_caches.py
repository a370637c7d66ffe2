"""Caches that are not of this data set, short, or damaged."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.parquet as pq
import pytest

from ltcore.data.loading.canvas_cache import entry_path, open_canvases
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards import cache as shard_cache
from ltcore.data.shards.manifest import LabelTable, Shard, read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from tests.data.small import COUNT, GIB, everything, only_shard, write_small


def test_canvases_of_an_earlier_data_set_at_the_same_place_are_not_used(small: Path) -> None:
    store = ShardStore(str(small))
    with_old = open_canvases(store, "train", 4, cache_bytes=GIB)
    old = with_old.canvases_N3SS.copy()
    with_old.close()
    write_small(small, first_seed=100)
    again = ShardStore(str(small))
    assert entry_path(again, "train", 4) != entry_path(store, "train", 4)
    new = open_canvases(again, "train", 4, cache_bytes=GIB).canvases_N3SS
    np.testing.assert_array_equal(new, decode_rows(again, "train", np.arange(COUNT), 4))
    assert not np.array_equal(new, old)


@pytest.mark.parametrize("cut", [0, 1, 2000])
def test_a_cached_shard_that_is_short_is_fetched_again(remote: str, small: Path, cut: int) -> None:
    expected = everything(ShardStore(remote))
    cached = shard_cache.cached_path(only_shard(small))
    cached.write_bytes(cached.read_bytes()[:cut])
    assert everything(ShardStore(remote)) == expected


@pytest.mark.timeout(60)
def test_so_is_one_with_a_pipe_in_its_place(remote: str, small: Path) -> None:
    expected = everything(ShardStore(remote))
    cached = shard_cache.cached_path(only_shard(small))
    cached.unlink()
    os.mkfifo(cached)  # to open it would wait for a writer for ever
    assert everything(ShardStore(remote)) == expected


def flip(file: Path, place: int) -> None:
    """In place, as a disk does; whoever has the file open reads it so, too."""
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))


def first_image(folder: Path) -> int:
    return int(pq.read_table(folder / only_shard(folder).index_path)["offset"][0].as_py())


@pytest.mark.parametrize("still_open", [False, True])
def test_a_cached_shard_with_a_flipped_bit_is_fetched_again(
    remote: str, small: Path, still_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = ShardStore(remote)
    expected = everything(store)
    cached = shard_cache.cached_path(only_shard(small))
    flip(cached, first_image(small))
    store = store if still_open else ShardStore(remote)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(lambda _: everything(store), range(4)))
    assert caplog.text.count(f"this node's copy {cached} was damaged and is fetched again") == 1
    assert everything(ShardStore(remote)) == expected
    assert len(caplog.records) == 1


def test_cached_labels_with_a_flipped_bit_are_fetched_again(
    remote: str, small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ShardStore(remote).labels("train")
    cached = shard_cache.cached_path(read_manifest(str(small)).split("train").labels)
    flip(cached, cached.stat().st_size - 1)
    for _ in range(2):
        np.testing.assert_array_equal(ShardStore(remote).labels("train"), expected)
    assert caplog.text.count(f"this node's copy {cached} was damaged and is fetched again") == 1


def test_a_disk_that_spoils_a_new_copy_too_is_named(remote: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is whole, and nobody is sent there."""
    everything(ShardStore(remote))
    download, table, shard = shard_cache._download, read_manifest(str(small)).split("train").labels, only_shard(small)

    def spoiled(uri: str, file: Shard | LabelTable, target: BinaryIO) -> None:
        download(uri, file, target)
        flip(Path(target.name), first_image(small) if isinstance(file, Shard) else file.bytes - 1)

    monkeypatch.setattr(shard_cache, "_download", spoiled)
    flip(shard_cache.cached_path(shard), first_image(small))
    with pytest.raises(
        DataError, match=r"found crc32 .* in a copy that was just fetched, .*or check this node's disk\."
    ):
        everything(ShardStore(remote))
    flip(cached := shard_cache.cached_path(table), table.bytes - 1)
    with pytest.raises(
        DataError, match=rf"{cached}: sha256 .*, also after it was fetched from {remote}/{table.path} again"
    ):
        ShardStore(remote).labels("train")


def test_labels_that_are_wrong_in_the_store_are_named_there(remote: str, small: Path) -> None:
    table = read_manifest(str(small)).split("train").labels
    ShardStore(remote).labels("train")
    flip(shard_cache.cached_path(table), table.bytes - 1)
    flip(small / table.path, table.bytes - 1)
    with pytest.raises(DataError, match=rf"^{remote}/{table.path}: .* The labels are damaged: restore them or make"):
        ShardStore(remote).labels("train")
