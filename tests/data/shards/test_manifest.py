from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltcore.data.shards.manifest import MANIFEST, read_manifest, write_manifest
from ltcore.errors import DataError


@pytest.fixture
def changed(tiny_shards: str, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], str]:
    """A copy of the tiny manifest with one change made to its JSON."""

    def make(change: Callable[[dict[str, Any]], None]) -> str:
        raw = json.loads((Path(tiny_shards) / MANIFEST).read_text())
        change(raw)
        (tmp_path / MANIFEST).write_text(json.dumps(raw))
        return str(tmp_path)

    return make


def test_round_trip_keeps_content_and_hash(tiny_shards: str, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_shards)
    write_manifest(manifest, str(tmp_path))
    again = read_manifest(str(tmp_path))
    assert again == manifest
    assert again.hash == manifest.hash
    assert len(manifest.hash) == 64


def test_statistics_come_from_the_counts(tiny_shards: str) -> None:
    manifest = read_manifest(tiny_shards)
    assert manifest.stats().counts_C.tolist() == [23, 12, 7, 4]
    assert manifest.stats("test").counts_C.tolist() == [5, 4, 3, 2]
    assert manifest.stats().shot_groups == ("many", "many", "medium", "few")
    assert manifest.split("train").num_samples == 46
    assert sum(manifest.split("train").rows_per_shard) == 46


def test_shards_are_described_truly(tiny_shards: str) -> None:
    for split in read_manifest(tiny_shards).splits.values():
        first = 0
        for shard in split.shards:
            tar, index = (Path(tiny_shards) / path for path in (shard.path, shard.index_path))
            assert shard.first_index == first
            assert shard.bytes == tar.stat().st_size
            assert shard.sha256 == hashlib.sha256(tar.read_bytes()).hexdigest()
            assert shard.index_sha256 == hashlib.sha256(index.read_bytes()).hexdigest()
            first += shard.count


def test_missing_split_lists_those_there_are(tiny_shards: str) -> None:
    with pytest.raises(DataError, match=r"no split 'tset'. Did you mean test\? It has: test, train, val|It has: train"):
        read_manifest(tiny_shards).split("tset")


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json does not exist"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"name": "x"}'])
def test_no_manifest_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="is no manifest"):
        read_manifest(str(tmp_path))


def _drop_class(raw: dict[str, Any]) -> None:
    raw["shot_groups"].pop()


def _wrong_counts(raw: dict[str, Any]) -> None:
    raw["class_counts"]["val"][0] += 1


def _missing_counts(raw: dict[str, Any]) -> None:
    del raw["class_counts"]["val"]


def _gap(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["shards"][1]["first_index"] += 1


def _leaves(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["shards"][1]["path"] = "../elsewhere.tar"


def _absolute(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["shards"][0]["index_path"] = "/etc/passwd"


def _backslash(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["shards"][0]["path"] = "..\\elsewhere.tar"


def _folder(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["shards"][0]["path"] = "."


def _split_leaves(raw: dict[str, Any]) -> None:
    for section in ("splits", "class_counts"):
        raw[section]["test/../../victim"] = raw[section].pop("test")


def _hash_leaves(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["shards"][1]["sha256"] = "../../x"


def _version(raw: dict[str, Any]) -> None:
    raw["version"] = 99


def _extra_field(raw: dict[str, Any]) -> None:
    raw["surprise"] = 1


def _no_shards(raw: dict[str, Any]) -> None:
    raw["splits"]["train"] = 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop_class, "shot_groups must give one of many, medium, few for each of the 4 classes"),
        (_wrong_counts, "class_counts of val sum to 13 over 4 classes, expected 12 over 4"),
        (_missing_counts, "class_counts has the splits"),
        (_gap, "expected first_index 9"),
        (_leaves, "leaves the data set"),
        (_absolute, "leaves the data set"),
        (_backslash, "leaves the data set"),
        (_folder, "leaves the data set"),
        (_split_leaves, r"a split is named 'test/\.\./\.\./victim', expected letters"),
        (_hash_leaves, r"found '\.\./\.\./x' where a sha256 should be"),
        (_version, "version 99, expected 2"),
        (_extra_field, "is damaged"),
        (_no_shards, "is damaged"),
    ],
)
def test_contradictions_are_named(
    changed: Callable[[Callable[[dict[str, Any]], None]], str], change: Callable[[dict[str, Any]], None], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_manifest(changed(change))


def test_hash_ignores_where_the_data_are(tiny_shards: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_shards, tmp_path / "copy")
    assert read_manifest(str(tmp_path / "copy")).hash == read_manifest(tiny_shards).hash


def test_the_same_content_is_parsed_once_and_other_content_anew(tiny_shards: str, tmp_path: Path) -> None:
    first = read_manifest(tiny_shards)
    assert read_manifest(tiny_shards) is first
    write_manifest(first, str(tmp_path))
    assert read_manifest(str(tmp_path)).hash == first.hash
    write_manifest(dataclasses.replace(first, seed=first.seed + 1), str(tmp_path))
    assert read_manifest(str(tmp_path)).seed == first.seed + 1


def test_the_hash_is_that_of_the_canonical_json_without_places(tiny_shards: str) -> None:
    manifest = read_manifest(tiny_shards)
    content = dataclasses.asdict(manifest)
    for split in content["splits"].values():
        for shard in split["shards"]:
            del shard["base"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert manifest.hash == hashlib.sha256(text.encode()).hexdigest()
