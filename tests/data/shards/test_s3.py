"""Shards in an object store: the same bytes, the same batches, downloaded once, and clear words where something is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.loader import Loader
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import ConfigError, DataError
from tests.conftest import TINY_COUNTS, make_tiny
from tests.data.small import write_small
from tests.paths import ROOT
from tests.shards import same

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]
BOUND_S = 30.0
"""More than any answer may take where the store is not what it should be."""


@pytest.fixture
def remote(bucket: Bucket, tiny_shards: str) -> str:
    """URI of a copy of the tiny data set in the store, which a test may damage."""
    for file in Path(tiny_shards).iterdir():
        bucket.put(f"sets/tiny/{file.name}", file.read_bytes())
    return f"{bucket.uri}/sets/tiny"


def everything(store: ShardStore, split: str = "train") -> list[bytes]:
    return store.read_rows(split, np.arange(len(store.labels(split))))


def cached() -> list[Path]:
    return sorted((storage.cache_root() / "shards").glob("*.tar"))


def refused(act: Callable[[], object]) -> str:
    """The one sentence or two that the user reads."""
    started = time.monotonic()
    with pytest.raises(DataError) as found:
        act()
    assert time.monotonic() - started < BOUND_S
    assert "\n" not in str(found.value)
    return str(found.value)


def test_written_straight_to_the_store_it_is_the_same_data_set(bucket: Bucket, tiny_shards: str) -> None:
    uri = f"{bucket.uri}/deep/down/tiny"
    make_tiny(uri)
    there, here = read_manifest(uri), read_manifest(tiny_shards)
    assert there.hash == here.hash
    assert [s.sha256 for s in there.split("train").shards] == [s.sha256 for s in here.split("train").shards]
    files = {file.name: file.read_bytes() for file in Path(tiny_shards).iterdir()}
    assert {key.rpartition("/")[2]: bucket.get(key) for key in bucket.names()} == files


def test_an_earlier_data_set_is_replaced_whole_and_foreign_files_are_kept(bucket: Bucket, tiny_shards: str) -> None:
    uri = f"{bucket.uri}/tiny"
    write_small(uri)
    make_tiny(uri)
    assert bucket.names() == sorted(f"tiny/{file.name}" for file in Path(tiny_shards).iterdir())
    for dear in ("thesis.pdf", "openimages-00000.tar"):  # the second has a name as ours have them
        bucket.put(f"tiny/{dear}", b"dear")
        with pytest.raises(ConfigError, match=rf"{uri} holds other files \({dear}, 1 in all\)"):
            make_tiny(uri)
        assert bucket.get(f"tiny/{dear}") == b"dear"
        bucket.delete(f"tiny/{dear}")
    assert read_manifest(uri).name == "tiny"


@contextlib.contextmanager
def after_each_change(bucket: Bucket, look: Callable[[], None]) -> Iterator[None]:
    """Looks after every request that may change what is in the bucket."""

    def listen(method: str, path: str) -> None:
        if method not in ("GET", "HEAD") and path.startswith(f"/{bucket.name}/"):
            look()

    bucket.server.requests.listeners.append(listen)
    try:
        yield
    finally:
        bucket.server.requests.listeners.remove(listen)


@pytest.mark.slow
def test_no_manifest_is_there_without_its_files(bucket: Bucket) -> None:
    uri, states = f"{bucket.uri}/tiny", list[bool]()

    def look() -> None:
        files = {key.rpartition("/")[2]: bucket.get(key) for key in bucket.names()}
        states.append(MANIFEST in files)
        if MANIFEST in files:
            for name, sha256 in read_manifest(uri).file_hashes.items():
                assert hashlib.sha256(files[name]).hexdigest() == sha256

    write_small(uri)
    with after_each_change(bucket, look):
        make_tiny(uri)
    assert states[0] and states[-1]
    assert 0 < states.count(False) < len(states) / 3  # while the three files change whose names both have


def test_the_same_data_set_changes_nothing_under_its_readers(bucket: Bucket) -> None:
    changes = list[None]()
    make_tiny(f"{bucket.uri}/tiny")
    with after_each_change(bucket, lambda: changes.append(None)):
        make_tiny(f"{bucket.uri}/tiny")
    assert changes == []


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_a_feed_gives_the_batches_of_a_local_copy(
    remote: str, tiny_shards: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_loader(uri: str) -> Loader:
        return make_loader(DataConfig(loader=kind), uri, batch_size=8, seed=0)

    def batches(loader: Loader) -> Iterator[object]:
        for epoch in range(2):
            yield from loader.train_batches(epoch)
        for split in ("val", "test"):
            yield from loader.eval_batches(split, 3)

    far = open_loader(remote)
    from_store = list(batches(far))
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "another-node"))  # else both would read the same canvases
    near = open_loader(tiny_shards)
    for first, second in zip(from_store, batches(near), strict=True):
        assert same(first, second)
    assert len(from_store) == 2 * 5 + 4 + 5
    far.close()
    near.close()


@pytest.mark.parametrize("split", sorted(TINY_COUNTS))
def test_rows_labels_attributes_and_keys_are_those_of_a_local_copy(remote: str, tiny_shards: str, split: str) -> None:
    far, near = ShardStore(remote), ShardStore(tiny_shards)
    assert everything(far, split) == everything(near, split)
    assert far.keys(split) == near.keys(split)
    np.testing.assert_array_equal(far.labels(split), near.labels(split))
    np.testing.assert_array_equal(far.attributes(split), near.attributes(split))


def test_a_shard_is_downloaded_once_a_node_whoever_reads_it(remote: str, bucket: Bucket, tiny_shards: str) -> None:
    expected, store = everything(ShardStore(tiny_shards)), ShardStore(remote)
    with ThreadPoolExecutor(8) as pool:
        assert all(rows == expected for rows in pool.map(lambda _: everything(store), range(8)))
    shards = store.manifest.split("train").shards
    assert bucket.reads(".tar") == len(shards)
    assert [path.name for path in cached()] == sorted(f"{shard.sha256}.tar" for shard in shards)
    bucket.delete(*(f"sets/tiny/{shard.path}" for shard in shards))
    assert everything(ShardStore(remote)) == expected
    assert bucket.reads(".tar") == len(shards)


def test_the_cache_of_raw_shards_keeps_its_cap(remote: str, bucket: Bucket, tiny_shards: str) -> None:
    expected = everything(ShardStore(tiny_shards))
    shards = read_manifest(tiny_shards).split("train").shards
    cap = 2 * max(shard.bytes for shard in shards)
    for opened in (1, 2):
        store = ShardStore(remote, cache_bytes=cap)
        assert everything(store) == expected
        assert len(store._open) == 2, "an open file takes its space also after it was evicted"
        assert len(cached()) == 2
        assert sum(path.stat().st_size for path in cached()) <= cap
        assert bucket.reads(".tar") == opened * len(shards)  # in order, so that what comes first was always evicted
    assert "more than data.cache_bytes=1000" in refused(lambda: everything(ShardStore(remote, cache_bytes=1000)))


def test_a_damaged_object_is_named_and_never_kept(remote: str, bucket: Bucket) -> None:
    shard = read_manifest(remote).split("train").shards[1]
    key, where = f"sets/tiny/{shard.path}", f"{remote}/{shard.path}"
    whole = bucket.get(key)
    flipped = whole[:700] + bytes([whole[700] ^ 1]) + whole[701:]
    for damaged in (whole[:-1000], b"", flipped):
        bucket.put(key, damaged)
        for _ in range(2):
            text = refused(lambda: everything(ShardStore(remote)))
            assert text.startswith(f"{where}: {len(damaged)} bytes with sha256")
            assert f"expected {shard.bytes} bytes" in text
        assert f"{shard.sha256}.tar" not in [path.name for path in cached()]
    bucket.delete(key)
    text = refused(lambda: everything(ShardStore(remote)))
    assert text.startswith(f"{where} ")
    bucket.put(key, whole)
    assert len(everything(ShardStore(remote))) == sum(TINY_COUNTS["train"])
    assert not list((storage.cache_root() / "shards").glob("*.partial"))


def test_a_damaged_index_or_manifest_is_named(remote: str, bucket: Bucket) -> None:
    index = read_manifest(remote).split("val").shards[0].index_path
    whole = bucket.get(f"sets/tiny/{index}")
    bucket.put(f"sets/tiny/{index}", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    assert f"{remote}/{index}: sha256" in refused(lambda: everything(ShardStore(remote), "val"))
    bucket.delete(f"sets/tiny/{index}")
    assert f"{remote}/{index} does not exist" in refused(lambda: everything(ShardStore(remote), "val"))
    bucket.put("sets/tiny/manifest.json", bucket.get("sets/tiny/manifest.json")[:-300])
    assert f"{remote}/manifest.json is no manifest" in refused(lambda: ShardStore(remote))
    bucket.delete("sets/tiny/manifest.json")
    assert f"{remote}/manifest.json does not exist" in refused(lambda: ShardStore(remote))


def test_small_files(bucket: Bucket) -> None:
    uri = f"{bucket.uri}/deep/file.json"
    assert not storage.exists(uri)
    for data in (b"one", b"", b"x" * (11 * 2**20)):  # the last one in several parts
        storage.write_bytes_atomic(uri, data)
        assert storage.exists(uri)
        assert storage.read_bytes(uri) == bucket.get("deep/file.json") == data
    assert storage.exists(f"{bucket.uri}/deep")
    assert not storage.exists(f"{bucket.uri}/dee")
    assert bucket.names() == ["deep/file.json"]
    assert f"{bucket.uri}/none does not exist" in refused(lambda: storage.read_bytes(f"{bucket.uri}/none"))


def test_files_below_a_place_are_listed_and_a_folder_is_removed(bucket: Bucket) -> None:
    for key in ("runs/a/x", "runs/a/deep/y", "runs/ab/z"):
        bucket.put(key, b"data")
    assert storage.list_files(f"{bucket.uri}/runs/a") == storage.list_files(f"{bucket.uri}/runs/a/") == ["deep/y", "x"]
    assert storage.list_files(f"{bucket.uri}/nothing") == []
    for _ in range(2):
        storage.remove_folder(f"{bucket.uri}/runs/a", first="x")
        assert bucket.names() == ["runs/ab/z"]


OPERATIONS: dict[str, Callable[[str], object]] = {
    "exists": storage.exists,
    "list": storage.list_files,
    "read": lambda uri: storage.read_bytes(f"{uri}/manifest.json"),
    "write": lambda uri: storage.write_bytes_atomic(f"{uri}/file", b"data"),
    "open": ShardStore,
    "prepare": lambda uri: prepare(DataConfig(uri=uri)),
    "make": make_tiny,
}


@pytest.mark.parametrize("operation", ["read", "write", "open", "prepare", "make"])
def test_a_missing_bucket_is_one_sentence(bucket: Bucket, operation: str) -> None:
    uri = "s3://bucket-that-nobody-made/tiny"
    assert uri in refused(lambda: OPERATIONS[operation](uri))


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_wrong_credentials_are_one_sentence(remote: str, bucket: Bucket, operation: str) -> None:
    bucket.server.check_keys(True)
    try:
        text = refused(lambda: OPERATIONS[operation](remote))
    finally:
        bucket.server.check_keys(False)
    assert remote in text
    assert "ACCESS_DENIED" in text or "INVALID_ACCESS_KEY_ID" in text


def test_credentials_that_end_between_opening_and_reading(remote: str, bucket: Bucket) -> None:
    store = ShardStore(remote)
    store.labels("train")
    bucket.server.check_keys(True)
    try:
        text = refused(lambda: everything(store))
    finally:
        bucket.server.check_keys(False)
    assert f"{remote}/{store.manifest.split('train').shards[0].index_path}" in text


def test_a_store_that_is_not_there_or_never_answers_is_one_sentence(
    bucket: Bucket, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert f"{bucket.uri}/x" in refused(lambda: storage.read_bytes(f"{bucket.uri}/x"))
    assert f"{bucket.uri}/x" in refused(lambda: storage.read_bytes(f"{bucket.uri}/x"))  # nobody listens any more


def test_a_check_leaves_the_shards_that_this_node_has(remote: str) -> None:
    everything(ShardStore(remote))
    before = set(cached())
    assert check_dataset(remote) == []
    assert before and before <= set(cached())


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "pipelines/make_shards.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_the_script_checks_and_describes_shards_in_the_store(remote: str, bucket: Bucket) -> None:
    info = script("info", remote)
    assert info.returncode == 0, info.stderr
    assert f"tiny  {remote}" in info.stdout
    assert "23..4, imbalance 5.75" in info.stdout
    sound = script("check", remote)
    assert (sound.returncode, sound.stdout) == (0, ""), sound.stderr
    assert "0 problems found" in sound.stderr
    shard = read_manifest(remote).split("test").shards[0].path
    bucket.put(f"sets/tiny/{shard}", bucket.get(f"sets/tiny/{shard}")[:-2000])
    broken = script("check", remote)
    assert broken.returncode == 1
    assert f"{shard}: has " in broken.stdout


def test_the_script_says_in_one_sentence_what_is_wrong_with_the_store(bucket: Bucket) -> None:
    missing = script("check", "s3://bucket-that-nobody-made/tiny")
    assert missing.returncode == 1
    assert "s3://bucket-that-nobody-made/tiny/manifest.json does not exist" in missing.stdout
    assert missing.stderr.startswith("1 problems found")
    bucket.server.check_keys(True)
    try:
        denied = script("info", f"{bucket.uri}/tiny")
    finally:
        bucket.server.check_keys(False)
    assert denied.returncode == 1
    assert denied.stderr.startswith(f"error: {bucket.uri}/tiny/manifest.json cannot be read")
    assert len(denied.stderr.splitlines()) == 1
