"""Whole images on disk: kept with their aspect, in any order, shared, within the cap, never half."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ltcore import storage
from ltcore.data.images.decode import decode_image, resample
from ltcore.data.loading import original_cache as image_cache
from ltcore.data.loading.canvas_cache import open_canvases
from ltcore.data.loading.original_cache import ImageCache, images_path, kept_size, open_images, typical_bytes
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.source import Sample
from ltcore.errors import DataError
from tests.conftest import png
from tests.shards import write_dataset

GIB = 2**30
SIDE = 12
SIZES = [(10, 10), (12, 40), (30, 24), (8, 50)]


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    rng = np.random.default_rng(0)
    samples = [Sample(f"k{n}", png(rng, *SIZES[n % 4]), "png", n % 2) for n in range(150)]
    uri = str(tmp_path / "shards")
    write_dataset(
        uri,
        name="sizes",
        classes=["a", "b"],
        attributes=[],
        splits={"train": samples, "val": samples[:3], "test": []},
        image_size=SIDE,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        seed=0,
        shot_rule="rank",
        provenance={},
    )
    return ShardStore(uri)


def open_split(store: ShardStore, split: str = "train", cache_bytes: int = GIB) -> ImageCache:
    return open_images(store, split, SIDE, cache_bytes=cache_bytes)


def entries() -> set[str]:
    return {path.name.split("-", 1)[1] for path in (storage.cache_root() / "canvases").iterdir() if path.is_dir()}


def assert_holds(opened: ImageCache, store: ShardStore) -> None:
    total = 0
    for index, data in enumerate(store.read_rows("train", np.arange(150))):
        original = decode_image(data, "x")
        height, width = original.shape[1:]
        kept, size = opened.image(index)
        assert size == (height, width)
        np.testing.assert_array_equal(kept, resample(original, (0, 0, height, width), kept_size(size, SIDE)))
        total += kept.size
    assert len(opened.pixels_P) == total, "nothing beside the images"


def test_holds_what_is_decoded_with_a_short_side_of_at_most_that(store: ShardStore) -> None:
    assert [kept_size(size, SIDE) for size in SIZES] == [(10, 10), (12, 40), (15, 12), (8, 50)]
    assert kept_size((375, 500), 224) == (224, 299)
    done: list[tuple[int, int]] = []
    opened = open_images(store, "train", SIDE, cache_bytes=GIB, progress=lambda n, total: done.append((n, total)))
    assert_holds(opened, store)
    assert done == [(64, 150), (128, 150), (150, 150)]
    assert not opened.pixels_P.flags.writeable
    assert entries() == {f"train-{SIDE}-v2-whole"}


def test_grows_where_the_images_are_longer_than_photographs(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "TYPICAL_ASPECT", 0.01)
    assert_holds(open_split(store), store)
    monkeypatch.undo()
    monkeypatch.setattr(image_cache, "TYPICAL_ASPECT", 50.0)
    open_split(store, "val")
    assert images_path(store, "val", SIDE).joinpath("canvases.u8").stat().st_size < typical_bytes(3, SIDE) // 10


def test_is_filled_once_by_all_who_open_it(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fill = image_cache._fill
    monkeypatch.setattr(image_cache, "_fill", lambda *args: (calls.append(1), fill(*args)))
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: open_split(store), range(6)))
    assert len(calls) == 1
    assert all(np.array_equal(one.pixels_P, opened[0].pixels_P) for one in opened)


@pytest.mark.parametrize("file", ["canvases.u8", "meta.json", "table.i64"])
def test_a_damaged_entry_is_filled_again(store: ShardStore, file: str) -> None:
    open_split(store).close()
    damaged = images_path(store, "train", SIDE) / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert_holds(open_split(store), store)


@pytest.mark.timeout(60)
def test_so_is_one_with_a_pipe_in_place_of_a_file(store: ShardStore) -> None:
    open_split(store).close()
    pipe = images_path(store, "train", SIDE) / "table.i64"
    pipe.unlink()
    os.mkfifo(pipe)  # to open it would wait for a writer for ever
    assert_holds(open_split(store), store)


def test_shares_the_cap_with_canvases(store: ShardStore) -> None:
    in_use = open_split(store)
    size = len(in_use.pixels_P)
    open_canvases(store, "val", SIDE, cache_bytes=size + 3 * 3 * SIDE**2).close()
    assert entries() == {f"train-{SIDE}-v2-whole", f"val-{SIDE}-v2"}
    with pytest.raises(DataError, match=r"are in use, and data\.cache_bytes="):
        open_images(store, "train", SIDE - 1, cache_bytes=size)
    in_use.close()


def test_in_use_it_stays_and_afterwards_the_least_recently_used_goes(store: ShardStore) -> None:
    in_use = open_split(store)
    with pytest.raises(DataError, match=r"are in use"):
        open_canvases(store, "val", SIDE, cache_bytes=len(in_use.pixels_P))
    in_use.close()
    open_canvases(store, "val", SIDE, cache_bytes=len(in_use.pixels_P))
    assert entries() == {f"val-{SIDE}-v2"}


def test_too_small_a_cap_also_midway(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"need 86400 bytes, 0 are in use, and data\.cache_bytes=1000\. Raise it"):
        open_split(store, cache_bytes=1000)
    monkeypatch.setattr(image_cache, "TYPICAL_ASPECT", 0.01)
    with pytest.raises(DataError, match=r"data\.cache_bytes=100000\. Raise it or use data\.loader=threads"):
        open_split(store, cache_bytes=100_000)
    assert entries() == set()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_full_disk(store: ShardStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DataError, match=r"No space left on device\. Free space, set LTCORE_CACHE to another disk"):
        open_split(store)
    assert entries() == set()


def test_an_empty_split(store: ShardStore) -> None:
    opened = open_split(store, "test")
    assert len(opened.pixels_P) == len(opened.table_N5) == 0
    opened.close()
