"""Reads that fail, end early, or bring other bytes, at every offset: all samples bit for bit, or one sentence."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from ltcore import retry, storage
from ltcore.data.shards import cache as shard_cache
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import DataError
from tests.data.small import GIB, delivered, everything, only_shard

Fault = Callable[[bytes, int, int], bytes]
"""(what a read would give, its offset in the file, the offset of the damage) -> what it gives."""


def fails(data: bytes, start: int, place: int) -> bytes:
    if start <= place < start + len(data):
        raise OSError(errno.EIO, "Input/output error")
    return data


def ends(data: bytes, start: int, place: int) -> bytes:
    return data[: max(0, place - start)]


def flips(data: bytes, start: int, place: int) -> bytes:
    at = place - start
    return data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :] if 0 <= at < len(data) else data


def blanks(data: bytes, start: int, place: int) -> bytes:
    """A block that the disk lost reads as zeros."""
    first, last = (min(max(0, at - start), len(data)) for at in (place, place + 64))
    return data[:first] + bytes(last - first) + data[last:]


@pytest.mark.parametrize("fault", [fails, ends, flips, blanks])
def test_a_fault_at_any_offset_of_a_shard_loses_no_sample_without_an_error(
    small: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, shard = ShardStore(str(small)), only_shard(small)
    expected = everything(store)
    tar = (small / shard.path).read_bytes()
    rows = pq.read_table(small / shard.index_path).to_pylist()
    touched = {n for row in rows for n in range(row["offset"] - 512, row["offset"] + row["size"])}
    pread, place, refused = os.pread, 0, set()
    monkeypatch.setattr(os, "pread", lambda file, size, start: fault(pread(file, size, start), start, place))
    for place in range(len(tar)):
        if not delivered(lambda: everything(store), expected):
            refused.add(place)
    image_bytes = {n for row in rows for n in range(row["offset"], row["offset"] + row["size"])}
    if fault is fails:
        assert refused == touched
    elif fault is ends:
        assert refused == set(range(max(touched) + 1))
    elif fault is flips:  # of a header the reader takes the name alone
        assert image_bytes <= refused <= touched
    else:
        assert image_bytes <= refused
    place = 2 * len(tar)
    assert everything(store) == expected


class _Stream(io.RawIOBase):
    """A stream that goes on as ``fault`` says."""

    def __init__(self, data: bytes, fault: Fault, place: int) -> None:
        self._data, self._fault, self._place, self._at = data, fault, place, 0

    def read(self, size: int = -1) -> bytes:
        chunk = self._data[self._at :] if size is None or size < 0 else self._data[self._at : self._at + size]
        start, self._at = self._at, self._at + len(chunk)
        return self._fault(chunk, start, self._place)

    def size(self) -> int:
        return len(self._data)


class _Faulty:
    """A file system in which reading ``name`` meets a fault."""

    def __init__(self, inner: pafs.FileSystem, name: str, fault: Fault, place: int) -> None:
        self._inner, self._name, self._fault, self._place = inner, name, fault, place

    def open_input_stream(self, path: str, compression: str | None = "detect") -> Any:
        return self._spoiled(self._inner.open_input_stream(path, compression), path)

    def open_input_file(self, path: str) -> Any:
        return self._spoiled(self._inner.open_input_file(path), path)

    def _spoiled(self, stream: Any, path: str) -> Any:
        return _Stream(stream.read(), self._fault, self._place) if path.endswith(self._name) else stream


@pytest.mark.parametrize("fault", [fails, ends, flips])
def test_a_fault_at_any_offset_of_a_download_loses_no_sample_without_an_error(
    remote: str, small: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "COPY_BYTES", 1000)
    monkeypatch.setenv(retry.VARIABLE, "0")
    shard, open_fs = only_shard(small), storage.open_fs
    where, whole = f"{remote}/{shard.path}", (small / shard.path).read_bytes()
    folder = shard_cache.cached_path(shard).parent

    def fetch() -> bytes:
        descriptor = shard_cache.fetch(where, shard, GIB)
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read()

    for place in range(len(fault.__name__), len(whole), 3):  # each fault begins at another offset
        faulty = _Faulty(open_fs(where)[0], shard.path, fault, place)
        monkeypatch.setattr(storage, "open_fs", lambda uri, faulty=faulty: (faulty, open_fs(uri)[1]))
        assert not delivered(fetch, whole)
        assert {path.suffix for path in folder.iterdir()} == {".lock"}, "nothing of it may be taken for whole later"
    monkeypatch.setattr(storage, "open_fs", open_fs)
    assert everything(ShardStore(remote)) == everything(ShardStore(str(small)))


@pytest.mark.parametrize("name", [MANIFEST, "train-00000.parquet"])
@pytest.mark.parametrize("fault", [fails, ends])
def test_a_fault_at_any_offset_of_manifest_and_index_is_an_error(
    small: Path, name: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retry.VARIABLE, "0")
    open_fs, size = storage.open_fs, (small / name).stat().st_size
    for place in range(len(fault.__name__), size, 3):  # each fault begins at another offset
        faulty = _Faulty(open_fs(str(small))[0], name, fault, place)
        monkeypatch.setattr(storage, "open_fs", lambda uri, faulty=faulty: (faulty, open_fs(uri)[1]))
        with pytest.raises(DataError, match=name):
            everything(ShardStore(str(small)))


def test_no_flipped_bit_of_a_manifest_is_anything_but_a_sentence(small: Path) -> None:
    """Names and means may change unnoticed; a count, a path or the form may not, and nothing ends in a traceback."""
    file, refused = small / MANIFEST, 0
    whole = file.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 128):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                read_manifest(str(small))
            except DataError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > len(whole)  # all of the upper bits, and what is structure


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": "16"}, "found '16' where a name or a count should be"),
        ({"image_size": 0}, "image_size is 0, expected 1 to 4096 pixels"),
        ({"classes": ["c0", "c0", "c2"]}, "two classes have the same name"),
        ({"classes": [1, 2, 3]}, "found 1 where"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\], expected three numbers"),
        ({"std": [0.5, float("nan"), 0.5]}, "std is"),
        ({"std": [0.5, 0, 0.5]}, "expected three numbers above 0"),
        ({"mean": "abc"}, "is damaged"),
        ({"provenance": []}, "provenance is no JSON object"),
        ({"splits": {"train": {"shards": [{"path": "x"}]}}}, "is damaged"),
    ],
)
def test_a_manifest_with_values_that_cannot_be_is_refused(small: Path, change: dict[str, Any], words: str) -> None:
    raw = json.loads((small / MANIFEST).read_text())
    (small / MANIFEST).write_text(json.dumps({**raw, **change}))
    with pytest.raises(DataError, match=words):
        read_manifest(str(small))
    assert [problem.where for problem in check_dataset(str(small))] == [MANIFEST]


def test_a_manifest_nested_without_end_is_one_sentence(small: Path) -> None:
    (small / MANIFEST).write_text("[" * 200_000)
    with pytest.raises(DataError, match="is no manifest"):
        read_manifest(str(small))
