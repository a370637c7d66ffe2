"""Caches that are not of this data set, short, or damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ltcore.data.loading.canvas_cache import entry_path, open_canvases
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards import cache as shard_cache
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from tests.data.small import COUNT, GIB, everything, only_shard, write_small


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
