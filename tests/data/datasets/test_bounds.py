"""Small inputs that ask for hours, all memory, or wait for ever: each is refused in a sentence, soon and in little memory."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ltcore.data.config import DataConfig
from ltcore.data.datasets import image_folder
from ltcore.data.datasets import lists as texts
from ltcore.data.datasets.folder_layout import read_folders
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.listed import read_lists
from ltcore.data.shards.manifest import MANIFEST, read_manifest, write_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import DataError
from tests.data.small import everything, only_shard, tiny_png

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


def vouched_index(folder: Path, table: pa.Table) -> None:
    """Another index, of which the manifest says that it is the right one."""
    manifest, shard = read_manifest(str(folder)), only_shard(folder)
    out = io.BytesIO()
    pq.write_table(table, out)
    (folder / shard.index_path).write_bytes(out.getvalue())
    shard = dataclasses.replace(shard, index_sha256=hashlib.sha256(out.getvalue()).hexdigest())
    splits = {"train": dataclasses.replace(manifest.split("train"), shards=(shard,))}
    write_manifest(dataclasses.replace(manifest, splits=splits), str(folder))


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
        r"found 10+ where a name or a count should be",
    ),
    "class count of 400 digits": (
        lambda d: edited(d, lambda raw: raw["class_counts"].update(train=[10**400, 1, 1])),
        r"found 10+ where a name or a count should be",
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


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_unpacks_to_very_much_more_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", method) as archive:
        archive.writestr("a/1.png", bytes(17 * 2**20))
    root = open_root(str(tmp_path / "set.zip"))
    words = r"a/1.png has 17825792 bytes, packed into \d+; expected at most 200 times as many"
    refused(lambda: root.read("a/1.png"), words)


@pytest.mark.parametrize("pack", ["folder", "zip"])
def test_large_images_are_never_in_memory_all_together(
    tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "CHUNK_BYTES", 2**20)
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
