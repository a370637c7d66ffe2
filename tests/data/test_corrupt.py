"""Whatever happens to shards, indexes, manifests, caches or disks: all samples bit for bit, or one sentence."""

from __future__ import annotations

import ast
import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs as pafs

from ltcore.data import shard_cache, storage
from ltcore.data.cache import entry_path, open_canvases
from ltcore.data.check import check_dataset
from ltcore.data.config import DataConfig
from ltcore.data.feed import open_feed
from ltcore.data.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from ltcore.data.prepare import prepare
from ltcore.data.shards import Sample, write_dataset
from ltcore.data.store import ShardStore, decode_rows
from ltcore.errors import DataError
from tests.conftest import make_tiny
from tests.faults import files_no_larger_than, full_disk, unwritable

ROOT = Path(__file__).parents[2]
COUNT = 3
GIB = 2**30


def tiny_png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def write_small(uri: Path | str, first_seed: int = 0, images: list[bytes] | None = None) -> Manifest:
    """One shard of three images (or those given) of as many classes, each with an attribute: 10 KiB."""
    images = images or [tiny_png(first_seed + n) for n in range(COUNT)]
    return write_dataset(
        str(uri),
        name="small",
        classes=[f"c{n}" for n in range(len(images))],
        attributes=["x"],
        splits={"train": [Sample(f"k{n}", image, "png", n, 0) for n, image in enumerate(images)]},
        canvas=4,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        seed=0,
        shot_rule="rank",
        provenance={},
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A data set of one shard, small enough to try something at each of its bytes; a test may damage it."""
    write_small(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def remote(small: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same data as if they were in an object store."""
    bucket = pafs.SubTreeFileSystem(str(small.parent), pafs.LocalFileSystem())
    monkeypatch.setattr(storage, "_remote_fs", lambda root, endpoint: bucket)
    return f"s3://{small.name}"


def only_shard(uri: Path | str) -> Shard:
    (shard,) = read_manifest(str(uri)).split("train").shards
    return shard


def everything(store: ShardStore) -> list[bytes]:
    return store.read_rows("train", np.arange(len(store.labels("train"))))


def delivered(act: Callable[[], Any], expected: Any) -> bool:
    """Whether ``act`` gave all that was expected; otherwise it must have refused in one line."""
    try:
        found = act()
    except DataError as error:
        assert "\n" not in str(error)
        return False
    assert found == expected
    return True


# ---- reading


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


class _Faulty:
    """A file system in which reading ``name`` meets a fault."""

    def __init__(self, inner: pafs.FileSystem, name: str, fault: Fault, place: int) -> None:
        self._inner, self._name, self._fault, self._place = inner, name, fault, place

    def open_input_stream(self, path: str) -> Any:
        stream = self._inner.open_input_stream(path)
        return _Stream(stream.read(), self._fault, self._place) if path.endswith(self._name) else stream


@pytest.mark.parametrize("fault", [fails, ends, flips])
def test_a_fault_at_any_offset_of_a_download_loses_no_sample_without_an_error(
    remote: str, small: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "_CHUNK_BYTES", 1000)
    shard, open_fs = only_shard(small), storage.open_fs
    where, whole = f"{remote}/{shard.path}", (small / shard.path).read_bytes()
    folder = shard_cache.cached_path(shard).parent

    def fetch() -> bytes:
        descriptor = shard_cache.fetch(where, shard, GIB)
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read()

    for place in range(len(whole)):
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
    open_fs, size = storage.open_fs, (small / name).stat().st_size
    for place in range(size):
        faulty = _Faulty(open_fs(str(small))[0], name, fault, place)
        monkeypatch.setattr(storage, "open_fs", lambda uri, faulty=faulty: (faulty, open_fs(uri)[1]))
        with pytest.raises(DataError, match=name):
            ShardStore(str(small)).labels("train")


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
        ({"canvas": "16"}, "found '16' where a name or a count should be"),
        ({"canvas": 0}, "found 0 where a name or a count should be"),
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


# ---- what a manifest vouches for, but is wrong all the same


def vouch(folder: Path, **changed: bytes) -> None:
    """Replaces tar or index and lets the manifest say that they are as they should be."""
    manifest, shard = read_manifest(str(folder)), only_shard(folder)
    tar = changed.get("tar", (folder / shard.path).read_bytes())
    index = changed.get("index", (folder / shard.index_path).read_bytes())
    (folder / shard.path).write_bytes(tar)
    (folder / shard.index_path).write_bytes(index)
    hashes = {"sha256": hashlib.sha256(tar).hexdigest(), "index_sha256": hashlib.sha256(index).hexdigest()}
    shard = dataclasses.replace(shard, bytes=len(tar), **hashes)
    splits = {"train": dataclasses.replace(manifest.split("train"), shards=(shard,))}
    write_manifest(dataclasses.replace(manifest, splits=splits), str(folder))


def with_column(folder: Path, name: str, change: Callable[[list[Any]], list[Any]]) -> bytes:
    table = pq.read_table(folder / only_shard(folder).index_path)
    place = table.schema.get_field_index(name)
    column = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
    out = io.BytesIO()
    pq.write_table(table.set_column(place, table.schema.field(name), column), out)
    return out.getvalue()


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            lambda d: with_column(d, "label", lambda v: [*v[:-1], COUNT]),
            r"sample 'k\d' of train has label 3, expected 0",
        ),
        (lambda d: with_column(d, "label", lambda v: [-1, *v[1:]]), r"sample 'k\d' of train has label -1, expected 0"),
        (lambda d: with_column(d, "attribute", lambda v: [1, *v[1:]]), "has attribute 1, expected -1..0"),
        (lambda d: with_column(d, "label", lambda v: [v[1], *v[1:]]), "the manifest says"),
        (lambda d: parquet(pq.read_table(d / "train-00000.parquet").slice(1)), "2 samples, .* expected 3"),
        (lambda d: parquet(pq.read_table(d / "train-00000.parquet").drop(["label"])), "may lack columns"),
        (lambda d: parquet(pa.table({"key": [1, 2, 3]})), "train-00000.parquet"),
        (lambda d: b"PAR1 and no more", "is no index of a shard"),
        (lambda d: b"", "is no index of a shard"),
    ],
)
def test_an_index_that_is_wrong_with_the_right_hash_is_named(
    small: Path, index: Callable[[Path], bytes], words: str
) -> None:
    vouch(small, index=index(small))
    with pytest.raises(DataError, match=words) as found:
        ShardStore(str(small)).labels("train")
    assert "\n" not in str(found.value)
    problems = [str(problem) for problem in check_dataset(str(small))]
    assert any("train-00000" in line and "split" not in line for line in problems), problems


def test_a_changed_index_is_not_even_parsed_by_the_check(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit in it can ask for all memory of the machine."""
    index = small / only_shard(small).index_path
    data = index.read_bytes()

    def parse(*args: Any, **options: Any) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(pq, "read_table", parse)
    for place in range(0, len(data), 97):
        index.write_bytes(data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :])
        assert any("train-00000.parquet: has sha256" in str(problem) for problem in check_dataset(str(small)))
        with pytest.raises(DataError, match=r"train-00000.parquet: sha256"):
            ShardStore(str(small)).labels("train")


def members(tar: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [(info.name, opened.extractfile(info).read()) for info in opened]  # type: ignore[union-attr]


def packed(entries: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: [*e, *e[:3]], "do not lie side by side, or it comes twice"),
        (lambda e: [e[0], *e[3:6], *e[1:3], *e[6:]], "do not lie side by side"),
        (lambda e: [x for x in e if x[0] != "k1.cls"], "sample 'k1': has no label"),
        (lambda e: [x for x in e if x[0] != "k1.png"], "sample 'k1': has 0 images"),
        (lambda e: [*e[:3], *e[3:6], ("k9.png", b"x"), *e[6:]], "sample 'k9': has no label"),
        (lambda e: [(n, b"9" * 5000 if n == "k1.cls" else d) for n, d in e], "has label '99999"),
        (lambda e: [(n, b"[" * 100_000 if n == "k1.json" else d) for n, d in e], "no JSON object"),
        (lambda e: [(n.replace("k1.", "../../k1."), d) for n, d in e], "sample '../../k1': is no safe name"),
        (lambda e: [(n.replace("k1.", "/etc/k1."), d) for n, d in e], "is no safe name"),
        (lambda e: [(n.replace("k1.png", "k1.p\nng"), d) for n, d in e], r"has 0 images \(cls, json, p\\nng\)"),
        (lambda e: e[:6], "holds 2 samples, the manifest says 3"),
    ],
)
def test_the_check_finds_what_is_wrong_inside_a_shard_of_the_right_hash(
    small: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], words: str
) -> None:
    entries = sorted(members((small / "train-00000.tar").read_bytes()), key=lambda e: e[0].split(".")[0])
    vouch(small, tar=packed(change(entries)))
    problems = [str(problem) for problem in check_dataset(str(small))]
    assert any(line.startswith(("train-00000.tar", "split")) for line in problems)
    assert any(re.search(words, line) for line in problems), problems
    assert all(line.isprintable() for line in problems)
    if (small / "train-00000.tar").read_bytes() != packed(entries):
        delivered(lambda: everything(ShardStore(str(small))), everything(ShardStore(str(write_twin(small)))))


def write_twin(small: Path) -> Path:
    """The same data set undamaged."""
    twin = small.with_name("twin")
    write_small(twin)
    return twin


def test_an_extra_shard_is_never_read_and_the_check_names_it(small: Path) -> None:
    expected = everything(ShardStore(str(small)))
    shutil.copy(small / "train-00000.tar", small / "train-00001.tar")
    assert everything(ShardStore(str(small))) == expected
    assert [str(p) for p in check_dataset(str(small)) if "no val" not in str(p) and "no test" not in str(p)] == [
        "train-00001.tar: the manifest does not know this file; remove it"
    ]


class _Evil:
    """What a pickle of it does when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._mark),)


def test_pickles_among_the_data_are_never_loaded(small: Path, tmp_path: Path) -> None:
    evil = pickle.dumps(_Evil(tmp_path / "mark"))
    expected = everything(ShardStore(str(small)))
    entries = members((small / "train-00000.tar").read_bytes())
    extra = [(f"z9.{ext}", evil) for ext in ("pyd", "pkl", "pickle", "pth", "npy")]
    (small / "train-00000.tar").write_bytes(packed(entries + extra))
    assert any("sample 'z9'" in str(problem) for problem in check_dataset(str(small)))
    delivered(lambda: everything(ShardStore(str(small))), expected)
    for name in (MANIFEST, "train-00000.parquet"):
        (small / name).write_bytes(evil)
        with pytest.raises(DataError):
            ShardStore(str(small)).labels("train")
        write_small(small)
    assert not (tmp_path / "mark").exists()
    pickle.loads(evil)
    assert (tmp_path / "mark").is_dir(), "the pickle does what it is meant to show"


def test_a_cifar_archive_that_is_not_the_published_one_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    from ltcore.data.sources.cifar import load

    def unreachable(self: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", unreachable)
    folder = storage.cache_root() / "torchvision" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, ("batches.meta", "")):
        (folder / name).write_bytes(pickle.dumps(_Evil(tmp_path / "mark")))
    with pytest.raises(DataError, match=r"cifar10 is not in .* and cannot be downloaded"):
        load("cifar10", train=True)
    assert not (tmp_path / "mark").exists()


def test_no_code_that_reads_data_knows_how_to_unpickle() -> None:
    for file in (ROOT / "ltcore" / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not {*names, module} & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}, file
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("np.load", "torch.load", "numpy.load", "eval", "exec"), file


# ---- writing


LIMITS = (0, 1, 100, 511, 1000, 2500, 5000, 9000)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_disk_that_fills_while_a_data_set_is_written(tmp_path: Path, limit: int) -> None:
    old = write_small(tmp_path / "d", first_seed=50)
    with files_no_larger_than(limit), pytest.raises(DataError, match=r"cannot be written: .*free space"):
        write_small(tmp_path / "d")
    assert read_manifest(str(tmp_path / "d")) == old
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    with files_no_larger_than(limit), pytest.raises(DataError, match="cannot be written"):
        write_small(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert write_small(tmp_path / "new").hash != old.hash


def test_a_file_system_without_space(tmp_path: Path, tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(tmp_path / "disk", 20_000) as disk:
        with pytest.raises(DataError, match=r"disk/d cannot be written: .*free space"):
            make_tiny(str(disk / "d"))
        monkeypatch.setenv("LTCORE_CACHE", str(disk / "cache"))
        with pytest.raises(DataError, match=r"canvas cache cannot be written: .*Free space"):
            open_canvases(ShardStore(tiny_shards), "train", 16, cache_bytes=GIB)
        with pytest.raises(DataError, match="cannot be written"):
            prepare(DataConfig(uri=image_folder(tmp_path, 60)))
        assert [path.name for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_disk_that_fills_while_a_shard_is_downloaded(remote: str, small: Path) -> None:
    store, shard = ShardStore(remote), only_shard(small)
    for limit in range(0, shard.bytes, 700):
        with files_no_larger_than(limit), pytest.raises(DataError, match=r"cannot be fetched into .*free space"):
            everything(store)
        assert {path.suffix for path in shard_cache.cached_path(shard).parent.iterdir()} == {".lock"}
    assert everything(store) == everything(ShardStore(str(small)))


def test_a_disk_that_fills_while_a_small_file_is_written(tmp_path: Path) -> None:
    uri = str(tmp_path / "file.json")
    storage.write_bytes_atomic(uri, b"old")
    with files_no_larger_than(10), pytest.raises(DataError, match=r"file\.json cannot be written"):
        storage.write_bytes_atomic(uri, b"x" * 11)
    assert storage.read_bytes(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def image_folder(parent: Path, per_class: int = 10) -> str:
    for n in range(2 * per_class):
        file = parent / "pets" / ("ant", "bee")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_png(n))
    return str(parent / "pets")


def test_places_in_which_nothing_can_be_made(
    tmp_path: Path, remote: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_folder(tmp_path)
    with unwritable(tmp_path / "place") as place:
        with pytest.raises(DataError, match=r"place/d cannot be written: .*Check permissions"):
            write_small(place / "d")
        with pytest.raises(DataError, match=r"place/file cannot be written: .*Check permissions"):
            storage.write_bytes_atomic(str(place / "file"), b"data")
        with monkeypatch.context() as patch:
            patch.setenv("LTCORE_CACHE", str(place / "cache"))
            with pytest.raises(DataError, match=r"cache/datasets cannot be written: .*permissions.*LTCORE_CACHE"):
                prepare(DataConfig(uri=images))
            with pytest.raises(DataError, match="canvas cache cannot be written"):
                open_canvases(ShardStore(str(small)), "train", 4, cache_bytes=GIB)
            with pytest.raises(DataError, match=r"cannot be fetched into .*Check access"):
                everything(ShardStore(remote))
        assert list(place.iterdir()) == []
    assert read_manifest(prepare(DataConfig(uri=images))).name == "pets"


# ---- caches


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


def test_a_cached_shard_with_a_flipped_bit_is_named_with_what_to_remove(remote: str, small: Path) -> None:
    expected = everything(ShardStore(remote))
    shard = only_shard(small)
    cached = shard_cache.cached_path(shard)
    place = pq.read_table(small / shard.index_path)["offset"][0].as_py()
    data = cached.read_bytes()
    cached.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(DataError, match=rf"This node's copy, {cached}, is damaged: remove it and run again"):
        everything(ShardStore(remote))
    cached.unlink()
    assert everything(ShardStore(remote)) == expected


# ---- bad samples on request


@pytest.fixture
def spoiled(tmp_path: Path) -> str:
    """Two classes of ten images, of which two of the first are none."""

    def samples() -> Iterator[Sample]:
        for n in range(20):
            yield Sample(f"k{n}", b"no image" if n in (0, 2) else tiny_png(n), "png", n % 2)

    write_dataset(
        str(tmp_path / "spoiled"),
        name="spoiled",
        classes=["a", "b"],
        attributes=[],
        splits={"train": samples()},
        canvas=4,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        seed=0,
        shot_rule="rank",
        provenance={},
    )
    return str(tmp_path / "spoiled")


@pytest.mark.parametrize("tier", ["cache", "threads"])
def test_every_replaced_sample_is_counted_and_told_once(
    spoiled: str, tier: str, caplog: pytest.LogCaptureFixture
) -> None:
    feed = open_feed(DataConfig(tier=tier, max_bad_samples=2), spoiled, batch_size=4, seed=0)
    for epoch in range(3):
        assert sum(len(batch) for batch in feed.train_batches(epoch)) == 20
    assert len(feed.bad_samples) == 2
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(key for text in told for key in ("'k0'", "'k2'") if key in text) == ["'k0'", "'k2'"]
    assert "1 of at most 2 (data.max_bad_samples)" in told[0]
    feed.close()
    if tier == "cache":  # filled by an earlier run: this one is told as well
        caplog.clear()
        open_feed(DataConfig(tier=tier, max_bad_samples=2), spoiled, batch_size=4, seed=0).close()
        (text,) = [record.getMessage() for record in caplog.records]
        assert "2 images of train cannot be decoded and are replaced" in text


def test_a_damaged_shard_is_no_bad_sample(small: Path) -> None:
    shard = only_shard(small)
    data = (small / shard.path).read_bytes()
    place = pq.read_table(small / shard.index_path)["offset"][0].as_py()
    (small / shard.path).write_bytes(data[:place] + b"\0" * 20 + data[place + 20 :])
    feed = open_feed(DataConfig(tier="threads", max_bad_samples=100), str(small), batch_size=3, seed=0)
    with pytest.raises(DataError, match="found crc32"):
        list(feed.train_batches(0))
