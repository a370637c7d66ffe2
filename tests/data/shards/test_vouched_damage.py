"""What a manifest vouches for, but is wrong all the same; and pickles, which nothing loads."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltcore import storage
from ltcore.data.shards.manifest import MANIFEST, read_manifest, write_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.validate import check_dataset
from ltcore.data.shards.writer import write_labels
from ltcore.errors import DataError
from tests.data.small import COUNT, delivered, everything, only_shard, write_small
from tests.paths import ROOT


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
        everything(ShardStore(str(small)))
    assert "\n" not in str(found.value)
    problems = [str(problem) for problem in check_dataset(str(small))]
    assert any("train-00000" in line and "split" not in line for line in problems), problems


@pytest.mark.parametrize("column", ["label", "attribute"])
def test_an_index_with_other_labels_than_the_table_is_found_by_the_check(small: Path, column: str) -> None:
    """Nobody but the check reads labels there."""
    expected = everything(ShardStore(str(small)))
    vouch(small, index=with_column(small, column, lambda v: [v[1] if column == "label" else -1, *v[1:]]))
    assert everything(ShardStore(str(small))) == expected
    assert any("its index says" in str(problem) for problem in check_dataset(str(small)))


def stored(table: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(table))
    return out.getvalue()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (lambda t: stored(t + np.array([[COUNT], [0]], t.dtype)), r"label of sample 0 is \d, expected 0..2"),
        (lambda t: stored(t - np.array([[COUNT], [0]], t.dtype)), r"label of sample 0 is -\d, expected 0..2"),
        (lambda t: stored(t + np.array([[0], [1]], t.dtype)), r"attribute of sample 0 is 1, expected -1..0"),
        (lambda t: stored(np.stack([t[0] * 0, t[1]])), "samples per class, the manifest says"),
        (lambda t: stored(t[:1]), "is no table of labels"),
        (lambda t: stored(t[:, 1:]), "is no table of labels"),
        (lambda t: stored(t.astype(np.float32)), "is no table of labels"),
        (lambda t: stored(t.astype(object)), "is no table of labels"),
        (lambda t: stored(np.asfortranarray(t)), "is no table of labels"),
        (lambda t: stored(t)[:-1], "is no table of labels"),
        (lambda t: stored(t) + b"x", "is no table of labels"),
        (lambda t: stored(t).replace(b"'shape': (2, 3)", b"'shape': (2, 9)"), "is no table of labels"),
        (lambda t: stored(t).replace(b"(2, 3)", b"(2, 3"), "is no table of labels"),
        (lambda t: b"\x93NUMPY", "is no table of labels"),
        (lambda t: b"", "is no table of labels"),
    ],
)
def test_a_table_of_labels_that_is_wrong_with_the_right_hash_is_named(
    small: Path, table: Callable[[Any], bytes], words: str
) -> None:
    manifest = read_manifest(str(small))
    split = manifest.split("train")
    path = small / split.labels.path
    right = np.frombuffer(path.read_bytes()[-2 * COUNT :], np.int8).reshape(2, COUNT)
    data = table(right)
    path.write_bytes(data)
    described = dataclasses.replace(split.labels, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    splits = {"train": dataclasses.replace(split, labels=described)}
    write_manifest(dataclasses.replace(manifest, splits=splits), str(small))
    with pytest.raises(DataError, match=words) as found:
        ShardStore(str(small)).labels("train")
    assert "\n" not in str(found.value)
    assert any(line.where == path.name and re.search(words, line.what) for line in check_dataset(str(small)))


def test_a_table_with_the_labels_of_others_is_found_by_the_check(small: Path) -> None:
    """As many of each class, so that nothing else can tell."""
    manifest = read_manifest(str(small))
    store = ShardStore(str(small))
    wrong = write_labels(small, "train", store.labels("train")[::-1], store.attributes("train"), manifest)
    splits = {"train": dataclasses.replace(manifest.split("train"), labels=wrong)}
    write_manifest(dataclasses.replace(manifest, splits=splits), str(small))
    assert any(line.where == wrong.path and "has label" in line.what for line in check_dataset(str(small)))


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
            everything(ShardStore(str(small)))


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
        (
            lambda e: [(n, b"9" * 5000 if n == "k1.cls" else d) for n, d in e],
            "has label 'of 5000 bytes', expected 0..2",
        ),
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
            everything(ShardStore(str(small)))
        shutil.rmtree(small)
        write_small(small)
    assert not (tmp_path / "mark").exists()
    pickle.loads(evil)
    assert (tmp_path / "mark").is_dir(), "the pickle does what it is meant to show"


def test_a_cifar_archive_that_is_not_the_published_one_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    from ltcore.data.datasets.cifar import load

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
