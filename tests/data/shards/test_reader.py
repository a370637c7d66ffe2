from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from ltcore import storage, stores
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards import cache as shard_cache
from ltcore.data.shards import reader as store_module
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import ConfigError, DataError
from tests.conftest import TINY_COUNTS, tiny_samples


@pytest.fixture
def copy(tiny_shards: str, tmp_path: Path) -> Path:
    """A copy of the tiny data set that a test may damage."""
    return Path(shutil.copytree(tiny_shards, tmp_path / "copy"))


@pytest.fixture
def remote(copy: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same data as if they were in an object store."""
    bucket = pafs.SubTreeFileSystem(str(copy.parent), pafs.LocalFileSystem())
    monkeypatch.setattr(stores, "_remote_fs", lambda *_: bucket)
    return f"s3://{copy.name}"


def test_no_shard_is_opened_for_names_that_nobody_reads(tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def where(store: ShardStore, split: str, index: int) -> str:
        raise AssertionError("every image is good")

    monkeypatch.setattr(ShardStore, "where", where)
    assert decode_rows(ShardStore(tiny_shards), "train", np.arange(46), 16).shape == (46, 3, 16, 16)


def everything(store: ShardStore, split: str = "train") -> list[bytes]:
    return store.read_rows(split, np.arange(len(store.labels(split))))


@pytest.mark.parametrize("split", sorted(TINY_COUNTS))
def test_rows_labels_attributes_and_keys_belong_together(tiny_shards: str, split: str) -> None:
    store = ShardStore(tiny_shards)
    samples = {sample.key: sample for sample in tiny_samples(split)}
    index_n = np.random.default_rng(0).permutation(len(samples)).repeat(2)
    keys = store.keys(split)
    assert sorted(keys) == sorted(samples)
    for index, image in zip(index_n.tolist(), store.read_rows(split, index_n), strict=True):
        sample = samples[keys[index]]
        assert image == sample.image
        assert store.labels(split)[index] == sample.label
        assert store.attributes(split)[index] == sample.attribute
        assert sample.key in store.where(split, index)


def test_arrays_cannot_be_changed_by_accident(tiny_shards: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        ShardStore(tiny_shards).labels("train")[0] = 1


def test_threads_and_few_open_files(tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_OPEN_SHARDS", 1)
    store, expected = ShardStore(tiny_shards), everything(ShardStore(tiny_shards))
    orders = [np.random.default_rng(n).permutation(len(expected)) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for order, rows in zip(orders, pool.map(lambda order: store.read_rows("train", order), orders), strict=True):
            assert rows == [expected[n] for n in order]


def test_every_truncation_is_found(copy: Path) -> None:
    shard = read_manifest(str(copy)).split("train").shards[0]
    tar = copy / shard.path
    whole = tar.read_bytes()
    for size in range(0, len(whole), 1499):
        tar.write_bytes(whole[:size])
        with pytest.raises(DataError, match=f"{shard.path}: found {size} bytes, expected {shard.bytes}"):
            everything(ShardStore(str(copy)))


def test_a_file_that_shrinks_while_it_is_open(copy: Path) -> None:
    store = ShardStore(str(copy))
    everything(store)
    tar = copy / store.manifest.split("train").shards[0].path
    with tar.open("r+b") as stream:
        stream.truncate(3000)
    with pytest.raises(DataError, match=r"sample 'train_\w+': the file ends after \d+ of \d+ bytes"):
        everything(store)


def test_every_flipped_byte_of_images_and_their_names_is_found(copy: Path) -> None:
    """In a shard that is open, row by row, and by its sha256 when it is opened."""
    opened = ShardStore(str(copy))
    everything(opened)
    shard = read_manifest(str(copy)).split("train").shards[0]
    tar, rows = copy / shard.path, pq.read_table(copy / shard.index_path).to_pylist()
    whole = tar.read_bytes()
    row = rows[2]
    name = range(row["offset"] - 512, row["offset"] - 512 + len(row["key"]))
    image = range(row["offset"], row["offset"] + row["size"], 57)
    for place in (*name, *image):
        tar.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(
            DataError, match=rf"{shard.path}: sample '{row['key']}': found (the member|crc32) .* expected"
        ):
            everything(opened)
        with pytest.raises(DataError, match=rf"{shard.path}: found sha256 .* expected .* by the manifest"):
            everything(ShardStore(str(copy)))


def test_exchanged_shards_are_found(copy: Path) -> None:
    first, second = (copy / shard.path for shard in read_manifest(str(copy)).split("val").shards)
    first.rename(copy / "x")
    second.rename(first)
    (copy / "x").rename(second)
    with pytest.raises(DataError, match=r"val-00000\.tar: found sha256"):
        everything(ShardStore(str(copy)), "val")


def test_missing_shard(copy: Path) -> None:
    shard = read_manifest(str(copy)).split("train").shards[1]
    (copy / shard.path).unlink()
    with pytest.raises(DataError, match=rf"{shard.path} cannot be opened: No such file"):
        everything(ShardStore(str(copy)))


def test_missing_and_damaged_index(copy: Path) -> None:
    index = copy / read_manifest(str(copy)).split("train").shards[1].index_path
    data = index.read_bytes()
    index.write_bytes(data[:40] + b"!" + data[41:])
    with pytest.raises(DataError, match=rf"{index.name}: sha256 .* expected"):
        everything(ShardStore(str(copy)))
    index.unlink()
    with pytest.raises(DataError, match=rf"{index.name} does not exist"):
        everything(ShardStore(str(copy)))


def test_missing_split(tiny_shards: str) -> None:
    with pytest.raises(DataError, match="no split 'tests'"):
        ShardStore(tiny_shards).labels("tests")


def test_remote_shards_are_fetched_once(remote: str, tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[str] = []
    download = shard_cache._download
    monkeypatch.setattr(shard_cache, "_download", lambda uri, *rest: downloads.append(uri) or download(uri, *rest))
    store = ShardStore(remote)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: everything(store), range(4)):
            assert rows == everything(ShardStore(tiny_shards))
    everything(ShardStore(remote))
    split = store.manifest.split("train")
    assert sorted(downloads) == sorted(storage.join(remote, file.path) for file in (*split.shards, split.labels))


def test_remote_cache_keeps_its_cap_and_open_files(remote: str, tiny_shards: str) -> None:
    sizes = [shard.bytes for shard in read_manifest(tiny_shards).split("train").shards]
    store = ShardStore(remote, cache_bytes=2 * max(sizes))
    for _ in range(2):  # the second time through files that were evicted but are still open
        assert everything(store) == everything(ShardStore(tiny_shards))
    kept = list((storage.cache_root() / "shards").glob("*.tar"))
    assert len(kept) == 2
    assert list((storage.cache_root() / "shards").glob("*.partial")) == []


def test_damaged_remote_shard_is_not_cached(remote: str, copy: Path) -> None:
    shard = read_manifest(str(copy)).split("train").shards[0]
    (copy / shard.path).write_bytes((copy / shard.path).read_bytes()[:-1000])
    with pytest.raises(DataError, match=f"{shard.path}: {shard.bytes - 1000} bytes with sha256"):
        everything(ShardStore(remote))
    assert not list((storage.cache_root() / "shards").glob("*.tar"))


def test_shard_larger_than_the_cap(remote: str) -> None:
    with pytest.raises(DataError, match=r"more than data.cache_bytes=1000"):
        everything(ShardStore(remote, cache_bytes=1000))


def test_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match="ftp:// is not supported"):
        ShardStore("ftp://example.org/data")


def test_atomic_write_replaces_whole_files(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/deep/file.json"
    storage.write_bytes_atomic(uri, b"one")
    storage.write_bytes_atomic(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert storage.exists(uri)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.json"]
