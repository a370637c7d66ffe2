"""Each bound of ``ltcore/limits.py`` in memory and time: what claims more is refused before it is held or gone through."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ltcore import limits, storage
from ltcore.config.bounded_yaml import YamlError, load_yaml
from ltcore.config.load import load_run
from ltcore.config.records import RunRecord
from ltcore.config.sweep import read_sweep
from ltcore.data.config import DataConfig
from ltcore.data.datasets import coco_objects, image_root, lists, parquet, tar_places, tar_samples, web_dataset
from ltcore.data.datasets.coco_objects import read_objects
from ltcore.data.datasets.image_root import open_root
from ltcore.data.datasets.inputs import Inputs
from ltcore.data.datasets.listed import read_lists
from ltcore.data.datasets.parquet import Parquet
from ltcore.data.datasets.tar_places import find_tars
from ltcore.data.datasets.web_dataset import WebDataset
from ltcore.data.images import decode
from ltcore.data.images.decode import decode_canvas, decode_image
from ltcore.data.images.given import read_image
from ltcore.data.room import Room
from ltcore.data.shards.kept import kept
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import LtcoreError
from ltcore.lease import FOLDER, Lease, exclusive
from ltcore.runtime.autoscaler import read_limits
from ltcore.tracking.jsonl_sink import read_metrics
from ltcore.training import checkpoint
from ltcore.training.class_words import class_words
from ltcore.training.sync import RunSync
from ltcore.training.weights_file import _noted, tensors
from tests.data.small import everything, tiny_png, write_small
from tests.paths import ROOT
from tests.peaks import within
from tests.tars import picture, pictures, write_tar, write_tars

HUGE = 2**31
"""Bytes of a file without content, which takes no disk."""
MOST_BYTES, MOST_S = 2**28, 10.0
"""A tenth of what most inputs here claim; a busy machine makes processors slower, not a hundred times."""

Act = Callable[[], Any]


def sparse(path: Path, size: int = HUGE, head: bytes = b"", tail: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size - len(tail))
        file.seek(0, os.SEEK_END)
        file.write(tail)
    return path


def large_image(folder: Path) -> Act:
    sparse(folder / "set" / "a" / "0.png")
    return lambda: open_root(str(folder / "set")).read("a/0.png")


def many_pixels(folder: Path) -> Act:
    parts = (
        b"IHDR" + struct.pack(">IIBBBBB", 2**14, 2**13, 8, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(bytes(1000)),
        b"IEND",
    )
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return lambda: decode_image(data, "0.png")


def many_scans(folder: Path) -> Act:
    out = io.BytesIO()
    Image.new("L", (16, 16), 99).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    first = data.rindex(b"\xff\xda")
    scans = (data[:first] + data[first:-2] * 20_000).replace(
        struct.pack(">HH", 16, 16), struct.pack(">HH", 8000, 8000), 1
    )
    return lambda: decode_image(scans + b"\xff\xd9", "0.jpg")


def much_text(folder: Path) -> Act:
    data = b"P3\n2 2\n255\n" + b"#\n" * 500_000 + b"1 2 3 " * 4
    return lambda: decode_image(data, "0.ppm")


def long_header(folder: Path) -> Act:
    data = b"P6\n#" + b" " * 2**28 + b"\n2 2\n255\n" + bytes(12)
    return lambda: decode_image(data, "0.ppm")


def many_numbers(folder: Path) -> Act:
    data = b"P6\n8000 8000\n254\n" + bytes(3 * 8000 * 8000)
    return lambda: decode_image(data, "0.ppm")


def run_lengths(folder: Path) -> Act:
    """A BMP in which lines end again and again."""
    header = struct.pack("<IiiHHIIiiII", 40, 9, 9, 1, 8, 1, 0, 0, 0, 1, 0)
    start = 14 + len(header) + 4
    data = b"BM" + struct.pack("<IHHI", start, 0, 0, start) + header + bytes(4) + bytes(2**27)
    return lambda: decode_image(data, "0.bmp")


def bomb(folder: Path) -> Act:
    """A zip whose entry says that it unpacks to as much as an image may have."""
    count = 17 * 2**20
    with zipfile.ZipFile(file := folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(count))
    file.write_bytes(file.read_bytes().replace(struct.pack("<I", count), struct.pack("<I", limits.MAX_IMAGE_BYTES)))
    return lambda: open_root(str(file)).read("a/1.png")


def packed_tar(folder: Path) -> Act:
    """Half a gigabyte of zeros, in parts as gzip allows."""
    (folder / "train.tar.gz").write_bytes(gzip.compress(bytes(2**24)) * 32)
    return lambda: WebDataset(DataConfig(uri=str(folder / "train.tar.gz"))).index()


def packed_column(folder: Path) -> Act:
    table = pa.table({"image": [bytes(2**24)] * 4, "label": [0] * 4})
    pq.write_table(table, folder / "train.parquet", compression="zstd", use_dictionary=False)
    return lambda: Parquet(DataConfig(uri=str(folder / "train.parquet")))


def directory(folder: Path) -> Act:
    """A zip that says that nearly all of it is a list of files."""
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, HUGE - 22, 0, 0)
    return lambda: open_root(str(sparse(folder / "set.zip", HUGE, tail=end)))


def deep_paths(folder: Path) -> Act:
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for n in range(50):
            archive.writestr("a/" * 30_000 + f"{n}.png", b"")
    return lambda: open_root(str(folder / "set.zip"))


def long_paths(folder: Path) -> Act:
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for n in range(50):
            archive.writestr("a" * 60_000 + f"/{n}.png", b"")
    return lambda: open_root(str(folder / "set.zip"))


def many_files(read: Callable[[str], Any]) -> Callable[[Path], Act]:
    def make(folder: Path) -> Act:
        (folder / "set" / "a").mkdir(parents=True)
        for n in range(1100):
            (folder / "set" / "a" / f"{n}.png").touch()
        return lambda: read(str(folder / "set"))

    return make


def many_samples(folder: Path) -> Act:
    write_tar(folder / "train.tar", [(f"{n}.x", b"") for n in range(1100)])
    return indexing(folder / "train.tar")


def many_samples_of_many_tars(folder: Path) -> Act:
    for tar in range(11):
        write_tar(folder / f"train-{tar}.tar", [(f"{tar}-{n}.png", b"") for n in range(100)])
    return indexing(folder)


def many_folders(folder: Path) -> Act:
    """Each level leads to the next by two names: a billion folders."""
    for level in range(30):
        (folder / f"{level}").mkdir()
        for side in ("a", "b"):
            (folder / f"{level}" / side).symlink_to(folder / f"{level + 1}")
    (folder / "30").mkdir()
    return lambda: storage.list_files(str(folder / "0"))


def deep_tars(folder: Path) -> Act:
    (deep := folder / "/".join("a" * 500)).mkdir(parents=True)
    write_tars(deep / "train-%d.tar", pictures(2))
    return lambda: find_tars(str(folder))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def indexing(file: Path) -> Act:
    return lambda: WebDataset(DataConfig(uri=str(file))).index()


def member(name: str) -> Callable[[Path], Act]:
    """A tar whose only image stands before a file of nothing but zeros."""
    image = picture(0, 0)
    head = header("0.png", len(image)) + image + bytes(-len(image) % 512) + header(name, 2**28)
    return lambda folder: indexing(sparse(folder / "train.tar", len(head) + 2**28 + 1024, head))


def crowded(folder: Path) -> Act:
    names = ["0.png", "0.cls", *(f"0.x{n}" for n in range(20_000))]
    write_tar(folder / "train.tar", [(name, b"") for name in names])
    return indexing(folder / "train.tar")


def one_sample(name: str, ext: str, data: bytes) -> Callable[[Path], Act]:
    def make(folder: Path) -> Act:
        write_tar(folder / "train.tar", [(f"{name}.png", picture(0, 0)), (f"{name}.{ext}", data)], tarfile.PAX_FORMAT)
        return indexing(folder / "train.tar")

    return make


def listing(name: str, data: bytes) -> Callable[[Path], Act]:
    def make(folder: Path) -> Act:
        (folder / "set" / "a").mkdir(parents=True)
        (folder / "set" / "a" / "0.png").write_bytes(tiny_png(0))
        file = folder / name
        if data:
            file.write_bytes(data)
        else:
            sparse(file)
        return lambda: read_lists(open_root(str(folder / "set")), [("train", str(file))])

    return make


def inputs(data: bytes) -> Callable[[Path], Act]:
    def make(folder: Path) -> Act:
        if data:
            (folder / "t.txt").write_bytes(data)
        else:
            sparse(folder / "t.txt")
        return lambda: Inputs([str(folder / "t.txt")], ("a", "b"))

    return make


def varint(number: int) -> bytes:
    low = number & 127
    return bytes([low]) if number < 128 else bytes([low | 128]) + varint(number >> 7)


def many(kind: int, count: int, data: bytes) -> bytes:
    """A list in the encoding of parquet's footers, Thrift's compact one."""
    return (bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + varint(count)) + data


def footer(columns: int, groups: int, chunks: int) -> Callable[[Path], Act]:
    """A parquet file of nothing but its footer; a chunk of a column is three bytes of it."""

    def make(folder: Path) -> Act:
        names = b"".join(b"\x15\2\x25\0\x18\5" + b"%05d\0" % n for n in range(columns))
        schema = many(12, columns + 1, b"\x48\1r\x15" + varint(2 * columns) + b"\0" + names)
        group = b"\x19" + many(12, chunks, b"\x26\0\0" * chunks) + b"\x16\0\x16\0\0"
        data = b"\x15\2\x19" + schema + b"\x16\0\x19" + many(12, groups, group * groups) + b"\0"
        file = folder / "train.parquet"
        file.write_bytes(b"PAR1" + data + struct.pack("<I", len(data)) + b"PAR1")
        return lambda: Parquet(DataConfig(uri=str(file)))

    return make


def entries(name: str, entry: str) -> str:
    """A million of them."""
    return f'{{"{name}": [{",".join([entry] * 10**6)}]}}'


def many_attributes(folder: Path) -> Act:
    (folder / "a.json").write_text(entries("attributes", '{"id": 1, "name": "wet"}'))
    return lambda: read_objects([], folder / "a.json")


def many_objects(folder: Path) -> Act:
    attributes = {"attributes": [{"id": 1, "name": "wet"}], "ann_vecs": {"0": [1]}, "patch_id_to_ann_id": {"0": 1}}
    (folder / "b.json").write_text(json.dumps(attributes))
    (folder / "a.json").write_text(entries("categories", '{"id": 1, "name": "ant"}'))
    return lambda: read_objects([folder / "a.json"], folder / "b.json")


def annotated(start: bytes, content: bytes) -> Callable[[Path], Act]:
    """An annotation file in which something fills thirty megabytes."""

    def make(folder: Path) -> Act:
        (folder / "a.json").write_bytes(start + content * (3 * 10**7 // len(content)))
        return lambda: read_objects([], folder / "a.json")

    return make


def names_beside_tars(folder: Path) -> Act:
    write_tars(folder / "train-%d.tar", pictures(2))
    (folder / "classes.txt").write_text("\n".join(map(str, range(limits.MAX_CLASSES + 1))))
    return lambda: WebDataset(DataConfig(uri=str(folder)))


def bytes_beside_tars(folder: Path) -> Act:
    write_tars(folder / "train-%d.tar", pictures(2))
    sparse(folder / "classes.txt")
    return lambda: WebDataset(DataConfig(uri=str(folder)))


def shards(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Act]:
    def make(folder: Path) -> Act:
        write_small(folder / "small")
        raw = json.loads((folder / "small" / MANIFEST).read_text())
        change(raw)
        (folder / "small" / MANIFEST).write_text(json.dumps(raw))
        return lambda: read_manifest(str(folder / "small"))

    return make


def rows_without_bytes(raw: dict[str, Any]) -> None:
    shard_of(raw).update(count=HUGE)
    raw["class_counts"].update(train=[HUGE, 0, 0])


def shard_of(raw: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = raw["splits"]["train"]["shards"][0]
    return shard


def large_index(folder: Path) -> Act:
    write_small(folder / "small")
    os.truncate(folder / "small" / "train-00000.parquet", HUGE)
    return lambda: everything(ShardStore(str(folder / "small")))


def recipe(folder: Path) -> Act:
    file = sparse(folder / "own.yaml", head=b"base: folder\n")
    return lambda: load_run(str(file))


def unfolding() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


def table(folder: Path) -> Act:
    key, text = "objective.base_options.cross_entropy.class_weights", f"{{{'a: 1, ' * 10**6}}}"
    return lambda: load_run("folder", {key: text})


def held(place: Path, act: Callable[[Lease], Any] = lambda claim: None) -> None:
    with exclusive(str(place)) as claim:
        act(claim)


def described(folder: Path) -> Act:
    """Weights with a hundred megabytes that say what they are."""
    with zipfile.ZipFile(folder / "w.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\2" + b"]" * 10**8)
    return lambda: tensors(folder / "w.pth")


def written(name: str, data: Callable[[], bytes], read: Callable[[Path], Any]) -> Callable[[Path], Act]:
    def make(folder: Path) -> Act:
        (folder / name).write_bytes(data())
        return lambda: read(folder)

    return make


STRIKES: dict[str, tuple[str, Callable[[Path], Act], str]] = {
    "image": ("MAX_IMAGE_BYTES", large_image, "a/0.png has 2147483648 bytes, expected at most 536870912"),
    "image to predict": (
        "MAX_IMAGE_BYTES",
        lambda folder: lambda: read_image(sparse(folder / "0.png")),
        "0.png has 2147483648 bytes, expected at most 536870912",
    ),
    "pixels": ("MAX_PIXELS", many_pixels, "0.png: the image has 16384 x 8192 pixels, expected 1 to 67108864"),
    "scans": ("MAX_SCANS", many_scans, r"0.jpg: the image has 2000\d scans, expected at most 100"),
    "text of a PPM": ("MAX_PPM_COMMENTS", much_text, "0.ppm: the image has 500000 comments, expected at most 1000"),
    "header of a PPM": ("MAX_PPM_HEADER_BYTES", long_header, "0.ppm: the image has no header in its first 65536 bytes"),
    "slow pixels": (
        "MAX_SLOW_PIXELS",
        many_numbers,
        "0.ppm: the image has 8000 x 8000 pixels in .* expected at most 8388608",
    ),
    "slow bytes": (
        "MAX_SLOW_BYTES",
        run_lengths,
        r"0.bmp: the image has 9 x 9 pixels in 134217\d+ bytes.* of a BMP of this kind",
    ),
    "entry of a zip": (
        "PACKED_BYTES MAX_RATIO",
        bomb,
        r"a/1.png has 536870912 bytes, packed into \d+; expected at most 200",
    ),
    "packed tar": ("PACKED_BYTES MAX_RATIO", packed_tar, r"train.tar.gz has \d+ bytes and more than \d+ unpacked"),
    "column": (
        "PACKED_BYTES MAX_RATIO",
        packed_column,
        r"train.parquet: image has 6710\d+ bytes .*expected at most 200 times",
    ),
    "directory": (
        "MAX_DIRECTORY_BYTES",
        directory,
        "its list of files has 2147483626 bytes, expected at most 268435456",
    ),
    "depth": ("MAX_DEPTH", deep_paths, "30000 folders in each other, expected at most 4096 and 64"),
    "path": (
        "MAX_PATH_CHARS",
        long_paths,
        r"6000\d characters and 1 folders in each other, expected at most 4096 and 64",
    ),
    "tars": (
        "MAX_TARS",
        lambda folder: lambda: find_tars(f"{folder}/{'{0..9}' * 12}.tar"),
        "means 100001 tars, expected at most 100000",
    ),
    "range of tars": (
        "MAX_TARS",
        lambda folder: lambda: find_tars(f"{folder}/{{0..99999999999}}.tar"),
        r"\{0\.\.99999999999\} means more than 100000 tars",
    ),
    "folders": ("MAX_FOLDERS", many_folders, "after 1,000 other folders: remove links between the folders"),
    "files": ("MAX_FILES", many_files(storage.list_files), "set has more than 1,000 files. Make shards"),
    "files of one folder": (
        "MAX_FILES",
        many_files(lambda place: storage.entries(f"{place}/a")),
        "set/a has more than 1,000 files. Make shards of its parts",
    ),
    "files of classes": ("MAX_FILES", many_files(open_root), "set has more than 1,000 files. Make shards of its parts"),
    "files beside tars": (
        "MAX_FILES",
        many_files(find_tars),
        "set/a has more than 1,000 files. Make shards of its parts",
    ),
    "files beside parquet": (
        "MAX_FILES",
        many_files(lambda place: Parquet.recognizes(f"{place}/a")),
        "set/a has more than 1,000 files. Make shards of its parts",
    ),
    "samples of a tar": ("MAX_ROWS", many_samples, "train.tar has more than 1,000 samples. Make shards of its parts"),
    "samples of tars": ("MAX_ROWS", many_samples_of_many_tars, "has more than 1,000 samples. Make shards of its parts"),
    "depth of tars": ("MAX_TAR_DEPTH", deep_tars, "lies more than 4 folders below the one that was named"),
    "extended header": (
        "MAX_EXTENDED_BYTES",
        lambda folder: indexing(sparse(folder / "train.tar", HUGE, header("x", 2**30, tarfile.XHDTYPE))),
        "train.tar: is no readable tar .*an extended header of 1073741824 bytes, expected at most 65536",
    ),
    "label": ("MAX_LABEL_BYTES", member("0.cls"), "cls has 268435456 bytes, expected a label of at most 1024"),
    "json of a sample": (
        "MAX_SAMPLE_JSON_BYTES",
        member("0.json"),
        "json has 268435456 bytes, expected at most 1048576",
    ),
    "files of a sample": ("MAX_SAMPLE_FILES", crowded, "train.tar: 0.* has more than 1000 files"),
    "key": (
        "MAX_KEY_CHARS",
        one_sample("k" * 60_000, "cls", b"0"),
        "has a name of 60000 characters, expected at most 1024",
    ),
    "name of a label": (
        "MAX_NAME_CHARS",
        one_sample("0", "json", json.dumps({"label": "x" * 2**19}).encode()),
        "has a label of 524288 characters, expected at most 1024",
    ),
    "digits": (
        "MAX_DIGITS",
        inputs(b"0.png " + b"9" * 10**6),
        "line 1: label 99999999999999999999, expected a class of the run",
    ),
    "list": ("MAX_LIST_BYTES", listing("t.txt", b""), "t.txt is larger than 268435456 bytes"),
    "list to predict": (
        "MAX_LIST_BYTES",
        inputs(b""),
        "t.txt is no list: expected a plain text file of at most 268435456",
    ),
    "rows": ("MAX_ROWS", listing("t.txt", b"a/0.png 0\n" * 10**6), "t.txt has more than 1,000 rows"),
    "cell": (
        "MAX_CELL_CHARS",
        listing("t.txt", b"a/0.png " + b"9" * 10**7),
        "t.txt, line 1: the text '9+'... has 10000000 characters, expected at most 4096",
    ),
    "values": (
        "MAX_JSON_VALUES",
        listing("t.json", b"[" + b"[]," * 2**22 + b"0]"),
        r"t.json is no readable json \(about 8388609 values, expected at most 4194304",
    ),
    "footer": (
        "MAX_FOOTER_BYTES",
        footer(1, 10, 10**6),
        r"train.parquet has a footer of 300\d+ bytes, expected at most 8388608",
    ),
    "column chunks": ("MAX_COLUMN_CHUNKS", footer(2**10, 2**10 + 1, 0), "in 1025 groups of 1024 columns; expected"),
    "attributes": (
        "MAX_ATTRIBUTES",
        many_attributes,
        "a.json has more than 4096 attributes, expected those of COCO",
    ),
    "objects": (
        "MAX_OBJECTS",
        many_objects,
        "a.json has more than 1000 categories, expected those of COCO",
    ),
    "text of an annotation": (
        "MAX_ENTRY_BYTES",
        annotated(b'{"info": "', b"x"),
        "a.json has an entry of more than 1048576 bytes, expected those of COCO",
    ),
    "annotation": (
        "MAX_ENTRY_BYTES",
        annotated(b'{"attributes": [{"x": [', b"[[],[],0],"),
        "a.json has an entry of more than 1048576 bytes, expected those of COCO",
    ),
    "depth of an annotation": (
        "MAX_ENTRY_DEPTH",
        annotated(b'{"info": ', b"["),
        "a.json has more than 32 lists in each other, expected those of COCO",
    ),
    "keys around an annotation": (
        "MAX_ENTRY_DEPTH",
        annotated(b"", b'{"' + b"k" * 10**5 + b'": '),
        "a.json has more than 32 lists in each other, expected those of COCO",
    ),
    "names of annotations": (
        "MAX_NAME_CHARS",
        annotated(b'{"attributes": [', b'{"id": 1, "name": "' + b"x" * 10**6 + b'"},'),
        "a.json: number 1 of attributes .*a name of 1000000 characters, expected at most 1024",
    ),
    "classes": (
        "MAX_CLASSES",
        names_beside_tars,
        "classes.txt has 1000001 names, .*expected 1 to 1000000 different ones",
    ),
    "file of classes": ("MAX_CLASSES_BYTES", bytes_beside_tars, "classes.txt is larger than 16777216 bytes"),
    "words": (
        "MAX_CLASSES_BYTES",
        lambda folder: lambda: class_words(str(sparse(folder / "w.csv")), ["a"]),
        "w.csv has more than 16777216 bytes",
    ),
    "manifest": (
        "MAX_MANIFEST_BYTES",
        lambda folder: lambda: read_manifest(str(sparse(folder / "d" / MANIFEST).parent)),
        "manifest.json is larger than 134217728 bytes",
    ),
    "record of a checkpoint": (
        "MAX_MANIFEST_BYTES",
        lambda folder: lambda: checkpoint.read(sparse(folder / "last-00000001" / "meta.json").parent),
        "meta.json is larger than 134217728 bytes",
    ),
    "record of a run": (
        "MAX_RECORD_BYTES",
        lambda folder: lambda: RunRecord.read(sparse(folder / "run.json").parent),
        "run.json is larger than 134217728 bytes. It is damaged: restore it",
    ),
    "record that is copied": (
        "MAX_RECORD_BYTES",
        lambda folder: RunSync("s3://bucket/run", sparse(folder / "run.json").parent).push,
        "run.json is larger than 134217728 bytes. It is damaged: restore it",
    ),
    "claim": (
        "MAX_CLAIM_BYTES",
        lambda folder: lambda: held(sparse(folder / FOLDER / "a.json").parent.parent),
        f"{FOLDER}/a.json is larger than 4096 bytes. It is no claim of a process: remove it",
    ),
    "claim beside one that is held": (
        "MAX_CLAIM_BYTES",
        lambda folder: lambda: held(folder, lambda claim: (sparse(folder / FOLDER / "a.json"), claim._look())),
        f"{FOLDER}/a.json is larger than 4096 bytes. It is no claim of a process: remove it",
    ),
    "values of a record": (
        "MAX_RECORD_VALUES",
        written("run.json", lambda: b'{"x": [' + b"[]," * 10**7 + b"0]}", RunRecord.read),
        r"run.json is not JSON \(about 2000000\d values, expected at most 4194304",
    ),
    "metrics": (
        "MAX_METRICS_BYTES",
        lambda folder: lambda: read_metrics(sparse(folder / "metrics.jsonl")),
        "metrics.jsonl is larger than 134217728 bytes. It is damaged: restore it",
    ),
    "row of metrics": (
        "MAX_ROW_VALUES",
        written(
            "metrics.jsonl",
            lambda: b'{"step": 1}\n{"step": [' + b"[]," * 10**7 + b"0]}\n",
            lambda folder: read_metrics(folder / "metrics.jsonl"),
        ),
        r"metrics.jsonl, line 2 is not JSON \(about 2000000\d values, expected at most 16384",
    ),
    "count": (
        "MAX_COUNT",
        shards(lambda raw: shard_of(raw).update(count=2**61)),
        "manifest.json: found 2305843009213693952 where a name or a count should be",
    ),
    "bytes of a row": (
        "MIN_BYTES_OF_ROW",
        shards(rows_without_bytes),
        r"2147483648 samples in \d+ bytes, expected 1024 for each",
    ),
    "index": ("MAX_INDEX_BYTES MAX_INDEX_BYTES_OF_ROW", large_index, "train-00000.parquet is larger than 71680 bytes"),
    "recipe": ("MAX_RECIPE_BYTES", recipe, "own.yaml is larger than 262144 bytes"),
    "cluster": (
        "MAX_RECIPE_BYTES",
        lambda folder: lambda: read_limits(sparse(folder / "cluster.yaml")),
        "cluster.yaml is larger than 262144 bytes. Run `ray up` again",
    ),
    "nodes of a cluster": (
        "MAX_RECIPE_NODES",
        written("c.yaml", lambda: unfolding().encode(), lambda folder: read_limits(folder / "c.yaml")),
        "c.yaml is not a cluster configuration .* values with all aliases, expected at most 32768",
    ),
    "nodes": (
        "MAX_RECIPE_NODES",
        lambda folder: lambda: load_yaml(unfolding()),
        r"it has \d+ values with all aliases, expected at most 32768",
    ),
    "depth of a recipe": ("MAX_RECIPE_DEPTH", lambda folder: lambda: load_yaml("[" * 10**6), "32 levels"),
    "table": ("MAX_TABLE_CHARS", table, "class_weights has 6000002 characters; at most 1048576 are read"),
    "trials": (
        "MAX_TRIALS",
        lambda folder: lambda: read_sweep("tune_lpa", {"sweep.recipe": "folder", "sweep.num_trials": 10**12}),
        "num_trials makes 1000000000000 trials, expected at most 100000",
    ),
    "names of tensors": (
        "MAX_TENSOR_NAMES_BYTES",
        described,
        "100000002 bytes describe its tensors, expected at most 8388608",
    ),
    "names of safetensors": (
        "MAX_TENSOR_NAMES_BYTES",
        lambda folder: lambda: tensors(sparse(folder / "w.safetensors", HUGE, struct.pack("<Q", HUGE - 8))),
        "2147483640 bytes describe its tensors, expected at most 8388608",
    ),
}
"""What is struck -> the bounds, what makes an input and returns what reads it, and what is said."""
SMALLER = {
    "values": (limits, "MAX_JSON_VALUES", 2**22),
    "rows": (lists, "MAX_ROWS", 1000),
    "objects": (coco_objects, "MAX_OBJECTS", 1000),
    "folders": (storage, "MAX_FOLDERS", 1000),
    "files": (storage, "MAX_FILES", 1000),
    "files of one folder": (storage, "MAX_FILES", 1000),
    "files of classes": (image_root, "MAX_FILES", 1000),
    "files beside tars": (tar_places, "MAX_FILES", 1000),
    "files beside parquet": (parquet, "MAX_FILES", 1000),
    "samples of a tar": (tar_samples, "MAX_ROWS", 1000),
    "samples of tars": (web_dataset, "MAX_ROWS", 1000),
}
"""Bounds up to which a person's own data take minutes or gigabytes."""
HELD = {"HELD_BYTES", "LARGE_PIXELS", "LARGE_PIXELS_AT_ONCE"}
"""Nothing is refused by these: it waits. See below, and ``tests/data/datasets/test_bounds.py``."""
ELSEWHERE = {"MAX_FETCHED_BYTES"}
"""What needs a server: ``tests/data/datasets/test_fetched.py``."""


def test_every_bound_is_struck() -> None:
    names = {name for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}
    assert names == {name for struck, _, _ in STRIKES.values() for name in struck.split()} | HELD | ELSEWHERE


@pytest.mark.parametrize("case", STRIKES)
def test_a_bound_holds_in_memory_and_time(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, make, words = STRIKES[case]
    if case in SMALLER:
        monkeypatch.setattr(*SMALLER[case])
    act = make(tmp_path)
    with within(MOST_BYTES, MOST_S), pytest.raises((LtcoreError, YamlError, ValueError)) as found:
        act()
    assert re.search(words, str(found.value)) and "\n" not in str(found.value), str(found.value)[:500]


@pytest.mark.parametrize("read", [lambda file: kept(file, "of"), lambda file: _noted(file.with_suffix(""))])
def test_what_can_be_found_again_is_taken_for_lost_beyond_its_bound(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    file = sparse(tmp_path / "a.sha256")
    with within(MOST_BYTES, MOST_S):
        assert read(file) is None


def decode_large_images() -> None:
    """Decodes four images of sixteen million pixels in as many threads, of which there is room for one at a time."""
    decode._ROOM = Room(2**24)
    out = io.BytesIO()
    Image.new("RGB", (4096, 4096), (9, 99, 199)).save(out, "PNG")
    decode_canvas(out.getvalue(), 8, "first")  # which loads code
    with ThreadPoolExecutor(4) as pool, within(10 * 2**24 + 2**26, 2 * MOST_S):
        shapes = list(pool.map(lambda n: decode_canvas(out.getvalue(), 8, str(n)).shape, range(4)))
    assert shapes == [(3, 8, 8)] * 4


def test_large_images_of_all_threads_are_decoded_within_their_room() -> None:
    """In a process of its own, whose heap no other test has left its holes in. Smaller ones a thread keeps for its next one."""
    code = "from tests import test_every_bound; test_every_bound.decode_large_images()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
