"""A stream's plan: any cut into parts gives the rows of the sampler, and a part needs nothing but itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.loading import window as window_module
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.plan import ShardHomes, parts, windows_from
from ltcore.data.loading.sampler import drawn_copies
from ltcore.data.loading.samples import decode_rows
from ltcore.data.loading.window import read_part
from ltcore.data.shards.manifest import MANIFEST, Shard
from ltcore.data.shards.reader import ShardStore

NODES = {"a": 2.0, "b": 1.0, "c": 4.0}


def job(uri: str, **fields: Any) -> dict[str, Any]:
    fixed = {
        "split": "train",
        "image_size": 16,
        "framing": {},
        "crops": [],
        "epochs": 1,
        "cache_bytes": 2**30,
        "max_bad_samples": 0,
        "seed": 3,
    }
    return {"uri": uri, "indexed": False, **fixed, **fields}


@pytest.mark.parametrize("kind", ["natural", "copies", "order", "paired"])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_parts_of_windows_are_the_rows_of_the_sampler(color_shards: str, kind: str, rank: int, world: int) -> None:
    options: dict[str, Any] = {"batch_size": 8, "seed": 3, "rank": rank, "world": world, "paired": kind == "paired"}
    loader = make_loader(DataConfig(loader="threads"), color_shards, **options)
    num_samples = loader.store.manifest.split("train").num_samples
    if kind == "copies":
        loader.copies_N = drawn_copies(np.arange(num_samples) % 5, 0, 1)
    elif kind == "order":
        loader.order_L = np.arange(num_samples)[::-1] // 2
    steps = [step for epoch, start in ((1, 3), (2, 0)) for step in loader.sampler(epoch).rank_batches(rank, start)]
    planned = windows_from(
        range(1, 3), loader.num_batches, 3, 2, lambda e, first: loader.sampler(e).rank_batches(rank, first)
    )
    place_of_shard, index, copies, homes = 0, list[int](), list[int](), defaultdict[str, set[str]](set)
    for number, window in enumerate(planned):
        images = np.zeros((len(window.rows), 3, 16, 16), np.uint8)
        for node, table in parts(window, number, loader.store, "train", ShardHomes(NODES)):
            got = read_part(table, job=job(color_shards))
            assert set(got["window"]) == {number}
            images[got["place"]] = got["image"]
            place_of_shard += len(got["place"])
            for text in table["shard"].combine_chunks().dictionary.to_pylist():
                homes[text].add(node)
        assert (images == decode_rows(loader.store, "train", window.rows.index_B, 16)).all()
        index += window.rows.index_B.tolist()
        copies += window.rows.copy_B.tolist()
    assert index == np.concatenate([step.index_B for step in steps]).tolist()
    assert copies == np.concatenate([step.copy_B for step in steps]).tolist()
    assert place_of_shard == len(index)
    assert {len(nodes) for nodes in homes.values()} == {1}, "a shard is read by one node"


def test_a_task_reads_the_indexes_of_its_shards_and_nothing_else(
    color_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(DataConfig(loader="threads"), color_shards, batch_size=8, seed=3)
    (window,) = windows_from(range(1), 2, 0, 2, lambda e, first: loader.sampler(e).rank_batches(0, first))
    tables = dict(parts(window, 0, loader.store, "train", ShardHomes(NODES)))
    assert len(tables) > 1
    window_module._files.cache_clear()
    read, find_bytes = list[str](), storage.find_bytes
    monkeypatch.setattr(
        storage, "find_bytes", lambda uri, *rest, **more: read.append(uri) or find_bytes(uri, *rest, **more)
    )
    for table in tables.values():
        read_part(table, job=job(color_shards))
    indexes = {storage.join(color_shards, shard.index_path) for shard in loader.store.manifest.split("train").shards}
    assert set(read) <= indexes and len(read) == len(set(read))
    assert not any(name.endswith(MANIFEST) for name in read)


def test_nobody_reads_an_index_for_labels(color_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, find_bytes = list[str](), storage.find_bytes
    monkeypatch.setattr(
        storage, "find_bytes", lambda uri, *rest, **more: read.append(uri) or find_bytes(uri, *rest, **more)
    )
    store = ShardStore(color_shards)
    labels_N = store.labels("train")
    assert np.bincount(labels_N).tolist() == list(store.manifest.class_counts["train"])
    assert store.labels_of("train", np.array([5, 0])).tolist() == labels_N[[5, 0]].tolist()
    store.attributes("val")
    assert [name.rpartition("/")[2] for name in read] == [MANIFEST]


def shards(count: int) -> list[Shard]:
    fields: dict[str, Any] = {"count": 1, "bytes": 1, "index_path": "i", "index_sha256": "0" * 64}
    return [Shard(path=f"{n}", first_index=n, sha256=f"{n:064x}", **fields) for n in range(count)]


def test_shards_live_on_nodes_in_proportion_to_their_cpus_and_move_only_from_a_lost_one() -> None:
    homes, without_b = ShardHomes(NODES), ShardHomes({"a": 2.0, "c": 4.0})
    before = {shard.path: homes(shard) for shard in shards(7000)}
    counts = Counter(before.values())
    for name, weight in NODES.items():
        assert abs(counts[name] - 1000 * weight) < 120  # four standard deviations of a fair draw
    after = {shard.path: without_b(shard) for shard in shards(7000)}
    assert all(after[path] == home for path, home in before.items() if home != "b")
    assert before == {shard.path: ShardHomes(dict(reversed(NODES.items())))(shard) for shard in shards(7000)}
