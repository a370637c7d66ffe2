"""Small inputs that ask for hours, all memory, or wait for ever: each is refused in a sentence, soon and in little memory."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import hashlib
import io
import json
import os
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ltcore import limits
from ltcore.data.config import DataConfig
from ltcore.data.datasets import far_files, image_folder, image_root, tar_samples, web_dataset
from ltcore.data.datasets import lists as texts
from ltcore.data.datasets.folder_layout import read_folders
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.inputs import Inputs
from ltcore.data.datasets.listed import read_lists
from ltcore.data.datasets.parquet import Parquet
from ltcore.data.datasets.tar_collection import ReadTar
from ltcore.data.datasets.web_dataset import WebDataset
from ltcore.data.images import decode
from ltcore.data.room import Room
from ltcore.data.shards import manifest, validate
from ltcore.data.shards.manifest import MANIFEST, read_manifest, write_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import BadImageError, DataError
from ltcore.fsspec_stores import FileInfo
from tests.data.small import everything, only_shard, tiny_png, write_small
from tests.tars import pictures, write_tar, write_tars

BOUND_S = 2.0


def refused(act: Callable[[], Any], words: str) -> None:
    """Soon, and in one line."""
    started = time.monotonic()
    with pytest.raises(DataError, match=words) as found:
        act()
    assert time.monotonic() - started < BOUND_S and "\n" not in str(found.value)


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    change(raw)
    (folder / MANIFEST).write_text(json.dumps(raw))


def shard_of(raw: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = raw["splits"]["train"]["shards"][0]
    return shard


def vouched_index(folder: Path, table: pa.Table, **options: Any) -> None:
    """Another index, of which the manifest says that it is the right one."""
    found, shard = read_manifest(str(folder)), only_shard(folder)
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    (folder / shard.index_path).write_bytes(out.getvalue())
    shard = dataclasses.replace(shard, index_sha256=hashlib.sha256(out.getvalue()).hexdigest())
    splits = {"train": dataclasses.replace(found.split("train"), shards=(shard,))}
    write_manifest(dataclasses.replace(found, splits=splits), str(folder))


def with_column(folder: Path, name: str, value: int) -> None:
    table = pq.read_table(folder / only_shard(folder).index_path)
    place = table.schema.get_field_index(name)
    column = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
    vouched_index(folder, table.set_column(place, table.schema.field(name), column))


def many_rows(folder: Path) -> None:
    table = pq.read_table(folder / only_shard(folder).index_path).slice(0, 1)
    vouched_index(folder, table.take(pa.array(np.zeros(300_000, np.int64))))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


SHARDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "manifest is a pipe": (lambda d: pipe(d / MANIFEST), r"manifest.json is no plain file"),
    "manifest is a device": (lambda d: zeros(d / MANIFEST), r"manifest.json is no plain file"),
    "index is a pipe": (lambda d: pipe(d / "train-00000.parquet"), r"train-00000.parquet is no plain file"),
    "tar is a pipe": (lambda d: pipe(d / "train-00000.tar"), r"train-00000.tar is no plain file"),
    "canvas 30000": (
        lambda d: edited(d, lambda raw: raw.update(image_size=30_000)),
        "image_size is 30000, expected 1 to 4096",
    ),
    "count of 400 digits": (
        lambda d: edited(d, lambda raw: shard_of(raw).update(count=10**400)),
        r"found 10+\.\.\. where a name or a count should be",
    ),
    "class count of 400 digits": (
        lambda d: edited(d, lambda raw: raw["class_counts"].update(train=[10**400, 1, 1])),
        r"found 10+\.\.\. where a name or a count should be",
    ),
    "NUL in a path": (lambda d: edited(d, lambda raw: shard_of(raw).update(path="a\0b.tar")), "leaves the data set"),
    "size 2^40": (lambda d: with_column(d, "size", 2**40), r"sample 'k\d' has 1099511627776 bytes from byte"),
    "size 2^62": (lambda d: with_column(d, "size", 2**62), r"sample 'k\d' has 4611686018427387904 bytes"),
    "size -1": (lambda d: with_column(d, "size", -1), r"sample 'k\d' has -1 bytes"),
    "offset -2^63": (lambda d: with_column(d, "offset", -(2**63)), "from byte -9223372036854775808 on"),
    "offset 2^62": (lambda d: with_column(d, "offset", 2**62), "from byte 4611686018427387904 on"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_of_strangers(small: Path, case: str) -> None:
    damage, words = SHARDS[case]
    damage(small)
    if (small / MANIFEST).is_file():
        before = time.monotonic()
        problems = [str(problem) for problem in check_dataset(str(small))]
        assert time.monotonic() - before < BOUND_S and any("no val" not in problem for problem in problems)
    refused(lambda: everything(ShardStore(str(small))), words)


def test_an_index_that_claims_other_rows_than_the_manifest_is_not_parsed(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """55 kB can claim two million of them."""
    many_rows(small)

    def parse(*args: Any, **options: Any) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(pq, "read_table", parse)
    refused(lambda: everything(ShardStore(str(small))), "train-00000.parquet: 300000 samples, .*expected 3")
    problems = [str(problem) for problem in check_dataset(str(small))]
    assert "train-00000.parquet: lists 300000 samples, the manifest says 3" in problems


def lists(folder: Path, name: str, data: bytes) -> Callable[[], Any]:
    for n in range(4):
        (folder / f"{n % 2}").mkdir(exist_ok=True)
        (folder / f"{n % 2}" / f"{n}.png").write_bytes(tiny_png(n))
    file = folder.with_name(name)
    file.write_bytes(data)
    return lambda: read_lists(open_root(str(folder)), [("train", str(file))])


LISTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "label of 5000 digits": (
        "t.txt",
        lambda: b"0/0.png " + b"9" * 5000,
        "t.txt, line 1: the text .* has 5000 characters",
    ),
    "gzip bomb": ("t.gz", lambda: gzip.compress(bytes(9 * 2**20)), r"t.gz is larger than 8388608 bytes, unpacked"),
    "cut gzip": ("t.gz", lambda: gzip.compress(os.urandom(999))[:-99], "t.gz is no readable list"),
    "corrupt gzip": ("t.gz", lambda: gzip.compress(b"0/0.png 0")[:10] + b"\xff" * 20, "t.gz is no readable list"),
    "one class": ("t.txt", lambda: b"0/0.png 0\n1/1.png 0", "all training images are of one class, '0'"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_strangers(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, data, words = LISTS[case]
    monkeypatch.setattr(texts, "MAX_LIST_BYTES", 2**23)
    (tmp_path / "set").mkdir()
    refused(lists(tmp_path / "set", name, data()), words)


@pytest.mark.parametrize("label", [10_000_000, 99_999_999_999])
def test_an_id_for_a_label_makes_no_class_for_every_number_below(tmp_path: Path, label: int) -> None:
    (tmp_path / "set").mkdir()
    layout = lists(tmp_path / "set", "t.txt", f"0/0.png 0\n1/1.png {label}\n1/3.png {label}".encode())()
    assert [entry.label for entry in layout.splits["train"]] == [0, 1, 1]
    assert layout.provenance == {"labels": f"0 to {label} with gaps, numbered 0 to 1 in that order"}


def test_an_entry_that_unpacks_to_very_much_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(17 * 2**20))
    root = open_root(str(tmp_path / "set.zip"))
    words = r"a/1.png has 17825792 bytes, packed into \d+; expected at most 200 times as many"
    refused(lambda: root.read("a/1.png"), words)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_an_end_are_refused(tmp_path: Path, method: int) -> None:
    """``zipfile`` unpacks them to whatever comes out, which the size that an entry gives does not bound."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w", method) as archive:
        archive.writestr("a/1.png", tiny_png(0))
    root = open_root(str(tmp_path / "set.zip"))
    refused(lambda: root.read("a/1.png"), "a/1.png is packed by (bzip2|lzma), expected deflate or none")


def test_entries_that_share_their_packed_bytes_count_together(tmp_path: Path) -> None:
    """Each is small enough: 260 of them make gigabytes of 4 MB."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(15 * 2**20))
        first = archive.infolist()[0]
        for n in range(1, 260):
            copied = copy.copy(first)
            copied.filename = f"a/{n}.png"
            archive.filelist.append(copied)
            archive.NameToInfo[copied.filename] = copied
    refused(
        lambda: open_root(str(tmp_path / "set.zip")),
        r"set.zip has \d+ bytes and 4089446400 unpacked; expected at most 200",
    )


def test_an_entry_that_lies_about_its_size_is_not_unpacked_to_its_end(tmp_path: Path) -> None:
    with zipfile.ZipFile(file := tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(200 * 2**20))
    data = file.read_bytes()
    file.write_bytes(data.replace((200 * 2**20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    root = open_root(str(file))
    tracemalloc.start()
    try:
        refused(lambda: root.read("a/1.png"), r"a/1.png cannot be read \(Bad CRC-32")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_list_of_files_larger_than_any_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_root._Bounded, "most", 400)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for n in range(9):
            archive.writestr(f"a/{n}.png", tiny_png(n))
    refused(lambda: open_root(str(tmp_path / "set.zip")), "its list of files has 477 bytes, expected at most 400")


@pytest.mark.parametrize("name", ["a/" * 70 + "0.png", "x" * 5000 + ".png", "a/" * 30_000 + "0.png"])
def test_paths_are_no_longer_and_deeper_than_any(tmp_path: Path, name: str) -> None:
    """The folders around a file, written out one by one, take the square of its depth."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(name, tiny_png(0))
    refused(lambda: open_root(str(tmp_path / "set.zip")), r"the path .* characters and \d+ folders in each other")


def test_a_folder_deeper_than_any_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / "set" / "/".join("a" * 100)
    deep.mkdir(parents=True)
    refused(lambda: open_root(str(tmp_path / "set")), "64 folders in each other")


@pytest.mark.parametrize("pack", ["folder", "zip"])
def test_large_images_are_never_in_memory_all_together(
    tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "HELD_BYTES", 2**20)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "BMP")  # 469 KiB
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for n in range(80):
            archive.writestr(f"{n % 2}/{n}.bmp", out.getvalue())
        if pack == "folder":
            archive.extractall(tmp_path / "set")
    root = open_root(str(tmp_path / ("set" if pack == "folder" else "set.zip")))
    read, live, most = root.read, 0, 0

    class Held(bytes):
        def __del__(self) -> None:
            nonlocal live
            live -= len(self)

    def counted(path: str) -> bytes:
        nonlocal live, most
        held = Held(read(path))
        live += len(held)
        most = max(most, live)
        return held

    monkeypatch.setattr(root, "read", counted)
    source = image_folder.image_folder(root, read_folders(root), DataConfig(val_per_class=0))
    assert sum(len(row.image) for row in source.splits["train"]) > 28 * 2**20
    assert most < 4 * 2**20


def test_broken_images_are_named_without_their_bytes(tmp_path: Path) -> None:
    """A traceback holds the frames that it went through, and these the bytes that could not be decoded."""
    for n in range(24):
        (tmp_path / "set" / f"c{n % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / f"c{n % 2}" / f"{n}.png").write_bytes(b"x" * 2**21)
    root = open_root(str(tmp_path / "set"))
    items = image_folder.items_of(root, read_folders(root), read_folders(root).splits["train"], {})
    rows = image_folder.ImageRows(root, items, [])
    errors: dict[str, BadImageError] = {}
    tracemalloc.start()
    try:
        assert list(image_folder.decoded(root, items, rows._sample, errors)) == []
        assert len(errors) == 24 and tracemalloc.get_traced_memory()[0] < 2**21
    finally:
        tracemalloc.stop()


def test_large_images_are_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each needs many times its file: a single color of 64 million pixels has a few kilobytes."""
    monkeypatch.setattr(decode, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(decode, "_ROOM", Room(2 * 64 * 64))
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG")
    now, most, upright, lock = 0, 0, decode._upright_pixels, threading.Lock()

    def counted(*args: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return upright(*args)

    monkeypatch.setattr(decode, "_upright_pixels", counted)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: decode.decode_canvas(out.getvalue(), 8, str(n)), range(24)))
    assert len(found) == 24 and most == 2


def test_tars_are_indexed_with_a_bounded_number_of_bytes_in_all_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image larger than all there is room for comes alone; none waits for ever."""
    monkeypatch.setattr(tar_samples, "HELD_BYTES", 3 * 2**20)
    monkeypatch.setattr(tar_samples, "_ROOM", room := Room(3 * 2**20))
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)).save(out, "BMP")  # 1 MiB
    large = out.getvalue() + bytes(4 * 2**20)
    for tar in range(6):
        members = [
            (f"{n}.{ext}", data) for n in range(4) for ext, data in (("bmp", out.getvalue()), ("cls", b"%d" % n))
        ]
        members += [("9.bmp", large), ("9.cls", b"%d" % (tar % 2))]
        write_tar(tmp_path / f"train-{tar}.tar", [(f"{tar}-{name}", data) for name, data in members])
    problem, live, most, lock = tar_samples._image_problem, 0, 0, threading.Lock()

    def counted(data: bytes) -> str:
        nonlocal live, most
        with lock:
            live += len(data)
            most = max(most, live)
        found = problem(data)
        with lock:
            live -= len(data)
        return found

    monkeypatch.setattr(tar_samples, "_image_problem", counted)
    indexed = WebDataset(DataConfig(uri=str(tmp_path))).index()
    assert sum(len(tar.index) for tars in indexed.splits.values() for tar in tars) == 30
    assert most <= max(3 * 2**20, len(large)) and room.take(3 * 2**20, wait=False)


def test_an_image_of_unknown_size_is_fetched_ahead_only_as_far_as_it_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_files, "UNKNOWN_BYTES", 100)
    for n, size in enumerate((50, 100, 101, 5000)):
        (tmp_path / f"{n}.png").write_bytes(bytes([n]) * size)
    names = [f"{n}.png" for n in range(4)]
    infos = {name: FileInfo(name, -1, "") for name in names}
    root = far_files.FarFiles("web", {name: str(tmp_path / name) for name in names}, infos)
    root.announce(names)
    assert [len(coming.result() or b"") for _, coming in root._coming] == [50, 100, 0, 0]
    assert [len(root.read(name)) for name in names] == [50, 100, 101, 5000]


def test_a_store_that_understates_a_size_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(bytes(5000))
    root = far_files.FarFiles("store", {"0.png": str(tmp_path / "0.png")}, {"0.png": FileInfo("0.png", 10, "")})
    refused(lambda: root.read("0.png"), "0.png is larger than 10 bytes")


def test_a_list_has_no_more_rows_than_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_ROWS", 3)
    (tmp_path / "set").mkdir()
    rows = b"".join(b"%d/%d.png %d\n" % (n % 2, n, n % 2) for n in range(4))
    refused(lists(tmp_path / "set", "t.txt", rows), "t.txt has more than 3 rows")
    refused(lambda: Inputs([str(tmp_path / "t.txt")], ("a", "b")), "t.txt has more than 3 rows")


def test_tars_with_too_many_samples_are_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, tars = list[int](), 30

    def slowly(self: WebDataset, number: int, *rest: Any) -> ReadTar:
        read.append(number)
        time.sleep(0.05)
        return read_tar(self, number, *rest)

    read_tar = WebDataset._read
    monkeypatch.setattr(WebDataset, "_read", slowly)
    monkeypatch.setattr(web_dataset, "TAR_THREADS", 1)
    monkeypatch.setattr(web_dataset, "MAX_ROWS", 3)
    for n in range(tars):
        write_tars(tmp_path / f"train-{n}-%d.tar", pictures(2, first=2 * n))
    refused(WebDataset(DataConfig(uri=str(tmp_path))).index, f"{tmp_path.name} has more than 3 samples. Make shards")
    assert len(read) < tars


def test_json_that_takes_very_much_more_memory_than_its_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_JSON_VALUES", 1000)
    (tmp_path / "set").mkdir()
    refused(lists(tmp_path / "set", "t.json", b"[" + b"[]," * 999 + b"[]]"), "about 2000 values, expected at most 1000")
    refused(lists(tmp_path / "set", "t.json", b"[" * 100_000), "about 100000 values|nested too deeply")


def test_half_a_surrogate_pair_names_no_image(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    tree = {"images": [{"id": 0, "file_name": "\ud800.png"}], "annotations": [], "categories": [{"id": 0, "name": "a"}]}
    refused(lists(tmp_path / "set", "t.json", json.dumps(tree).encode()), "names no image")


BOMBS: dict[str, tuple[pa.Table, dict[str, Any], str]] = {
    "more rows than bytes": (
        pa.table({"image": ["0.png"] * 100_000, "label": pa.array(np.zeros(100_000, np.int64))}),
        {},
        r"claims 100000 rows in 1 groups of 2 columns; expected at most a row for each byte",
    ),
    "zeros": (
        pa.table({"image": [bytes(17 * 2**20)], "label": [0]}),
        {"compression": "zstd"},
        r"image has 178\d+ bytes in a row group, packed into \d+; expected at most 200 times as many",
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_parquet_of_strangers(tmp_path: Path, case: str) -> None:
    table, options, words = BOMBS[case]
    pq.write_table(table, tmp_path / "train.parquet", **options)
    refused(lambda: Parquet(DataConfig(uri=str(tmp_path / "train.parquet"))), words)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "long name": (lambda raw: raw.update(classes=["x" * 2000, "b", "c"]), "one of the classes has 2000 characters"),
    "long attribute": (lambda raw: raw.update(attributes=["x" * 2000]), "one of the attributes has 2000 characters"),
    "mean of 400 digits": (lambda raw: raw.update(mean=[10**400, 0, 0]), "is damaged .*too large"),
    "class count Infinity": (lambda raw: raw["class_counts"].update(train=[float("inf"), 1, 1]), "is damaged"),
    "rows without bytes": (
        lambda raw: shard_of(raw).update(bytes=1000),
        "3 samples in 1000 bytes, expected 1024 for each",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_of_strangers(small: Path, case: str) -> None:
    change, words = MANIFESTS[case]
    edited(small, change)
    refused(lambda: read_manifest(str(small)), words)


def test_a_manifest_and_an_index_larger_than_any_are_not_held(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (small / "train-00000.parquet").stat().st_size
    with (small / "train-00000.parquet").open("ab") as stream:
        stream.write(bytes(2**17 - size))
    refused(lambda: everything(ShardStore(str(small))), r"train-00000.parquet is larger than 71680 bytes")
    assert any("is larger than 71680 bytes" in str(problem) for problem in check_dataset(str(small)))
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 100)
    refused(lambda: read_manifest(str(small)), "manifest.json is larger than 100 bytes")


def test_an_index_that_unpacks_to_thousands_of_times_its_size_is_not_parsed(small: Path) -> None:
    table = pq.read_table(small / only_shard(small).index_path)
    vouched_index(small, table, compression="zstd")
    refused(lambda: everything(ShardStore(str(small))), "is compressed by ZSTD, expected Snappy")


def test_the_check_holds_no_whole_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar of any size is read in parts, and of its images no more than there is room for are held."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "BMP")
    write_small(tmp_path / "set", images=[out.getvalue()] * 40)  # 41 MiB
    monkeypatch.setattr(validate, "ROOM", Room(2**21))
    tracemalloc.start()
    try:
        problems = [str(problem) for problem in check_dataset(str(tmp_path / "set"))]
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert problems == [f"manifest.json: there is no {kind} split; it has train" for kind in ("test", "val")]


@pytest.mark.parametrize(("name", "size"), [("cls", 2**11), ("json", 2**21), ("txt", 2**22)])
def test_the_check_holds_no_file_that_no_sample_has(small: Path, name: str, size: int) -> None:
    """It is named, where a sample has such a file at all."""
    entries = [("k0.png", tiny_png(0)), ("k0.cls", b"0"), (f"k0.{name}", bytes(size))]
    write_tar(small / "train-00000.tar", [entry for entry in entries if entry[0] != f"k0.{name}" or entry[1] != b"0"])
    problems = [str(problem) for problem in check_dataset(str(small))]
    assert any("the manifest says" in problem for problem in problems)
    assert name == "txt" or any(f"of {size} bytes" in problem for problem in problems)
