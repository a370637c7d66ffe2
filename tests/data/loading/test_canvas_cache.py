from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ltcore import storage
from ltcore.data.loading import canvas_cache as cache_module
from ltcore.data.loading.canvas_cache import CanvasCache, canvas_bytes, entry_path, open_canvases
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError

GIB = 2**30


@pytest.fixture
def store(tiny_shards: str) -> ShardStore:
    return ShardStore(tiny_shards)


def open_split(store: ShardStore, split: str = "train", cache_bytes: int = GIB) -> CanvasCache:
    return open_canvases(store, split, 16, cache_bytes=cache_bytes)


def entries() -> set[str]:
    """Splits that have an entry, complete or not."""
    return {path.name.split("-", 1)[1] for path in (storage.cache_root() / "canvases").iterdir() if path.is_dir()}


def age(store: ShardStore, split: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(entry_path(store, split, 16), (then, then))


def test_holds_what_is_decoded(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_ROWS", 7)  # several pieces, the last one short
    done: list[tuple[int, int]] = []
    opened = open_canvases(store, "train", 16, cache_bytes=GIB, progress=lambda n, total: done.append((n, total)))
    np.testing.assert_array_equal(opened.canvases_N3SS, decode_rows(store, "train", np.arange(46), 16))
    assert done == [(min(n, 46), 46) for n in range(7, 53, 7)]
    assert not opened.canvases_N3SS.flags.writeable
    assert entries() == {"train-16-v2"}


def test_is_filled_once_by_all_who_open_it(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(cache_module, "_fill", lambda *args, fill=cache_module._fill: (calls.append(1), fill(*args)))
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: open_split(store), range(6)))
    assert len(calls) == 1
    assert all((one.canvases_N3SS == opened[0].canvases_N3SS).all() for one in opened)
    open_canvases(store, "train", 8, cache_bytes=GIB)
    assert len(calls) == 2


def test_entries_that_are_filled_at_the_same_time_do_not_disturb_each_other(store: ShardStore) -> None:
    """Each counts the bytes of all while others come and go."""

    def fill(image_size: int) -> bool:
        with_one = open_canvases(store, "test", image_size, cache_bytes=GIB)
        with_one.close()
        return bool((with_one.canvases_N3SS == decode_rows(store, "test", np.arange(14), image_size)).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(4, 84)))


def test_a_killed_fill_is_never_taken_for_whole(store: ShardStore) -> None:
    path = entry_path(store, "train", 16)
    partial = path.with_name(f"{path.name}.partial")
    partial.mkdir(parents=True)
    (partial / "canvases.u8").write_bytes(b"\0" * canvas_bytes(46, 16))
    expected = decode_rows(store, "train", np.arange(46), 16)
    np.testing.assert_array_equal(open_split(store).canvases_N3SS, expected)
    assert entries() == {"train-16-v2"}


@pytest.mark.parametrize("file", ["canvases.u8", "meta.json"])
def test_a_damaged_entry_is_filled_again(store: ShardStore, file: str) -> None:
    open_split(store).close()
    damaged = entry_path(store, "train", 16) / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    expected = decode_rows(store, "train", np.arange(46), 16)
    np.testing.assert_array_equal(open_split(store).canvases_N3SS, expected)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("file", ["canvases.u8", "meta.json", "rows.crc32"])
def test_so_is_one_with_a_pipe_in_place_of_a_file(store: ShardStore, file: str) -> None:
    expected = open_split(store)
    expected.close()
    pipe = entry_path(store, "train", 16) / file
    pipe.unlink()
    os.mkfifo(pipe)  # to open it would wait for a writer for ever
    np.testing.assert_array_equal(open_split(store).canvases_N3SS, expected.canvases_N3SS)


def test_least_recently_used_goes_first(store: ShardStore) -> None:
    sizes = {name: canvas_bytes(split.num_samples, 16) for name, split in store.manifest.splits.items()}
    for split in ("train", "val"):
        open_split(store, split).close()
    age(store, "train", 100)
    age(store, "val", 200)
    open_split(store, "val").close()  # used again: train is now the oldest
    open_split(store, "test", cache_bytes=sizes["val"] + sizes["test"]).close()
    assert entries() == {"val-16-v2", "test-16-v2"}


def test_an_entry_in_use_stays(store: ShardStore) -> None:
    in_use = open_split(store)
    before = in_use.canvases_N3SS.copy()
    with pytest.raises(DataError, match=r"are in use, and data\.cache_bytes="):
        open_split(store, "val", cache_bytes=canvas_bytes(46, 16))
    np.testing.assert_array_equal(in_use.canvases_N3SS, before)
    in_use.close()
    open_split(store, "val", cache_bytes=canvas_bytes(46, 16))
    assert entries() == {"val-16-v2"}


def test_leftovers_of_a_killed_process_make_room(store: ShardStore) -> None:
    stale = entry_path(store, "train", 16)
    partial = stale.with_name(f"{stale.name}.partial")
    partial.mkdir(parents=True)
    stale.with_name(f"{stale.name}.lock").touch()
    (partial / "canvases.u8").write_bytes(b"\0" * 10_000)
    open_split(store, "val", cache_bytes=canvas_bytes(12, 16) + 5000)
    assert entries() == {"val-16-v2"}


def test_too_small_a_cap_says_what_to_do(store: ShardStore) -> None:
    with pytest.raises(DataError, match=r"need 35328 bytes, .*data\.cache_bytes=1000\. Raise it or use data\.loader"):
        open_split(store, cache_bytes=1000)
    assert entries() == set()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_full_disk(store: ShardStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DataError, match=r"No space left on device\. Free space, set LTCORE_CACHE to another disk"):
        open_split(store)
    assert entries() == set()
    monkeypatch.undo()


def test_a_cache_folder_that_cannot_be_made(store: ShardStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="the canvas cache cannot be written"):
        open_split(store)
