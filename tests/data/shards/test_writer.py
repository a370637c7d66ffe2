from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from pyarrow import fs as pafs

from ltcore import lease, stores
from ltcore.data.shards.manifest import Manifest, read_manifest
from ltcore.data.shards.source import Sample, safe_key
from ltcore.errors import ConfigError, DataError
from ltcore.rng import hash64
from tests.shards import write_dataset

RNG = np.random.default_rng(0)
SAMPLES = [Sample(f"k{n}", RNG.bytes(RNG.integers(1, 2000)), "png", n % 3, n % 2 - (n % 4 == 3)) for n in range(25)]


def write(uri: Path | str, samples: Any = SAMPLES, **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "name": "small",
        "classes": ["a", "b", "c"],
        "attributes": ["x", "y"],
        "splits": {"train": samples},
        "image_size": 8,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "seed": 7,
        "shot_rule": "count",
        "provenance": {"from": ("tests", 1)},
        "shard_size": 10,
    }
    return write_dataset(str(uri), **{**arguments, **changes})


def test_readable_by_webdataset(tmp_path: Path) -> None:
    manifest = write(tmp_path / "d")
    urls = [str(tmp_path / "d" / shard.path) for shard in manifest.split("train").shards]
    found = {row["__key__"]: row for row in webdataset.WebDataset(urls, shardshuffle=False)}
    assert len(found) == len(SAMPLES)
    for sample in SAMPLES:
        row = found[sample.key]
        assert row["png"] == sample.image
        assert int(row["cls"]) == sample.label
        assert ("json" in row) == (sample.attribute >= 0)
        if sample.attribute >= 0:
            assert json.loads(row["json"]) == {"attribute": sample.attribute}


def test_rows_lie_in_keyed_hash_order_in_even_shards(tmp_path: Path) -> None:
    manifest = write(tmp_path / "d")
    keys = []
    for shard in manifest.split("train").shards:
        keys += pq.read_table(tmp_path / "d" / shard.index_path)["key"].to_pylist()
    assert keys == sorted((s.key for s in SAMPLES), key=lambda key: hash64(7, key))
    assert manifest.split("train").rows_per_shard == (8, 8, 9)


def test_index_points_at_the_image(tmp_path: Path) -> None:
    samples = [Sample(f"p{n}", b"x" * (n * 300 + 1), ext, 0, n % 2) for n, ext in enumerate(["webp", "jpg", "png"])]
    samples += [Sample("q", b"1", "png", 1), Sample("r", b"2", "jpg", 2)]
    manifest = write(tmp_path / "d", samples)
    (shard,) = manifest.split("train").shards
    with tarfile.open(tmp_path / "d" / shard.path) as tar:
        for row in pq.read_table(tmp_path / "d" / shard.index_path).to_pylist():
            member = tar.getmember(f"{row['key']}.{row['ext']}")
            assert (row["offset"], row["size"]) == (member.offset_data, member.size)
            assert member.mtime == 0


def test_equal_samples_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b", iter(SAMPLES[::-1]))
    assert first == second
    assert first.hash == second.hash
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert write(tmp_path / "c", seed=8).hash != first.hash


def test_what_is_returned_is_what_is_read(tmp_path: Path) -> None:
    manifest = write(tmp_path / "d", shot_rule="rank", mean=np.float32([0.1, 0.2, 0.3]))
    assert read_manifest(str(tmp_path / "d")) == manifest
    assert manifest.provenance == {"from": ["tests", 1]}
    assert manifest.class_counts == {"train": (9, 8, 8)}


def test_an_empty_split_has_no_shards(tmp_path: Path) -> None:
    manifest = write(tmp_path / "d", splits={"train": SAMPLES, "val": []})
    assert manifest.split("val").shards == ()
    assert manifest.class_counts["val"] == (0, 0, 0)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (Sample("../up", b"1", "png", 0), r"'../up' is no legal key"),
        (Sample("a.b", b"1", "png", 0), "is no legal key"),
        (Sample("/root", b"1", "png", 0), "is no legal key"),
        (Sample("", b"1", "png", 0), "is no legal key"),
        (Sample("k" * 91, b"1", "png", 0), "at most 90"),
        (Sample("k0", b"1", "png", 0), "'k0' comes twice"),
        (Sample("new", b"", "png", 0), "zero bytes"),
        (Sample("new", b"1", "exe", 0), "extension 'exe'"),
        (Sample("new", b"1", "png", 3), "label 3, expected 0..2"),
        (Sample("new", b"1", "png", -1), "label -1"),
        (Sample("new", b"1", "png", 0, 2), r"attribute 2, expected -1..1"),
    ],
)
def test_bad_samples_leave_nothing_behind(tmp_path: Path, sample: Sample, words: str) -> None:
    with pytest.raises(DataError, match=words):
        write(tmp_path / "d", [*SAMPLES, sample])
    assert list(tmp_path.iterdir()) == []


def test_a_class_without_training_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training image in 1 class, the first is 'd'"):
        write(tmp_path / "d", classes=["a", "b", "c", "d"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"splits": {}}, "splits has nothing, expected 'train'"),
        ({"splits": {"train": SAMPLES, "../x": []}}, "use only letters"),
        ({"classes": ["a", "a", "b"]}, "distinct"),
        ({"shot_rule": "rnak"}, "Did you mean rank"),
        ({"shard_size": 0}, "shard_size must be >= 1, got 0"),
        ({"image_size": 4097}, r"image_size must be in \[1, 4096\], got 4097"),
        ({"std": (0.2, 0.2, 0.0)}, "std positive"),
    ],
)
def test_wrong_arguments(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        write(tmp_path / "d", **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_old_data_set_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    old = write(tmp_path / "d", shard_size=2)

    def failing() -> Iterator[Sample]:
        yield SAMPLES[0]
        raise DataError("the source broke")

    with pytest.raises(DataError, match="the source broke"):
        write(tmp_path / "d", failing())
    assert read_manifest(str(tmp_path / "d")) == old
    new = write(tmp_path / "d")
    assert read_manifest(str(tmp_path / "d")) == new
    assert len(list((tmp_path / "d").iterdir())) == 2 + 2 * len(new.split("train").shards)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_other_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex"):
        write(tmp_path / "d")
    assert (tmp_path / "d" / "thesis.tex").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path / "file" / "d")


def test_object_store_gets_the_manifest_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bucket" / "d" / lease.FOLDER).mkdir(
        parents=True
    )  # the fake has folders, which object stores do not need
    bucket = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(stores, "_remote_fs", lambda *_: bucket)
    write("s3://bucket/d", shard_size=3)
    copied: list[str] = []
    copy_files = pafs.copy_files

    def spy(source: str, destination: str, **options: Any) -> None:
        copied.append(destination)
        copy_files(source, destination, **options)

    monkeypatch.setattr(pafs, "copy_files", spy)
    manifest = write("s3://bucket/d")
    assert copied[-1] == "bucket/d/manifest.json"
    assert read_manifest("s3://bucket/d") == manifest
    # the table of labels lies there already, as the same samples are in other shards
    assert sum(path.is_file() for path in (tmp_path / "bucket" / "d").rglob("*")) == len(copied) + 1 == 8


@pytest.mark.parametrize(
    "text", ["plain", "a/b-c_d", "../../etc/passwd", "name.with.dots", "", "Ünïcode 図", "x" * 300]
)
def test_safe_key(tmp_path: Path, text: str) -> None:
    key = safe_key(text)
    assert safe_key(text) == key
    assert safe_key(key) == key
    assert (key == text) == (text in ("plain", "a/b-c_d"))
    write(tmp_path / "d", [*SAMPLES, Sample(key, b"1", "png", 0)])


def test_safe_keys_stay_apart() -> None:
    texts = ["a.b", "a_b", "a b", "a//b", "a/b", "a/b/"]
    assert len({safe_key(text) for text in texts}) == len(texts)
