"""Disks that fill and places that cannot be written: nothing half-written that a later run takes for whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.data.loading.canvas_cache import open_canvases
from ltcore.data.shards import cache as shard_cache
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from tests.conftest import make_tiny
from tests.data.small import GIB, everything, only_shard, tiny_png, write_small
from tests.faults import files_no_larger_than, full_disk, unwritable

LIMITS = (0, 1, 100, 511, 1000, 2500, 5000, 9000)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_disk_that_fills_while_a_data_set_is_written(tmp_path: Path, limit: int) -> None:
    old = write_small(tmp_path / "d", first_seed=50)
    with files_no_larger_than(limit), pytest.raises(DataError, match=r"cannot be written: .*free space"):
        write_small(tmp_path / "d")
    assert read_manifest(str(tmp_path / "d")) == old
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    with files_no_larger_than(limit), pytest.raises(DataError, match="cannot be written"):
        write_small(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert write_small(tmp_path / "new").hash != old.hash


def test_a_file_system_without_space(tmp_path: Path, tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(tmp_path / "disk", 20_000) as disk:
        with pytest.raises(DataError, match=r"disk/d cannot be written: .*free space"):
            make_tiny(str(disk / "d"))
        monkeypatch.setenv("LTCORE_CACHE", str(disk / "cache"))
        with pytest.raises(DataError, match=r"canvas cache cannot be written: .*Free space"):
            open_canvases(ShardStore(tiny_shards), "train", 16, cache_bytes=GIB)
        with pytest.raises(DataError, match="cannot be written"):
            prepare(DataConfig(uri=image_folder(tmp_path, 60)))
        assert [path.name for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_disk_that_fills_while_a_shard_is_downloaded(remote: str, small: Path) -> None:
    store, shard = ShardStore(remote), only_shard(small)
    for limit in range(0, shard.bytes, 700):
        with files_no_larger_than(limit), pytest.raises(DataError, match=r"cannot be fetched into .*free space"):
            everything(store)
        assert {path.suffix for path in shard_cache.cached_path(shard).parent.iterdir()} <= {".lock", ".npy"}
    assert everything(store) == everything(ShardStore(str(small)))


def test_a_disk_that_fills_while_a_small_file_is_written(tmp_path: Path) -> None:
    uri = str(tmp_path / "file.json")
    storage.write_bytes_atomic(uri, b"old")
    with files_no_larger_than(10), pytest.raises(DataError, match=r"file\.json cannot be written"):
        storage.write_bytes_atomic(uri, b"x" * 11)
    assert storage.read_bytes(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def image_folder(parent: Path, per_class: int = 10) -> str:
    for n in range(2 * per_class):
        file = parent / "pets" / ("ant", "bee")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_png(n))
    return str(parent / "pets")


def test_places_in_which_nothing_can_be_made(
    tmp_path: Path, remote: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_folder(tmp_path)
    with unwritable(tmp_path / "place") as place:
        with pytest.raises(DataError, match=r"place/d cannot be written: .*Check permissions"):
            write_small(place / "d")
        with pytest.raises(DataError, match=r"place/file cannot be written: .*Check permissions"):
            storage.write_bytes_atomic(str(place / "file"), b"data")
        with monkeypatch.context() as patch:
            patch.setenv("LTCORE_CACHE", str(place / "cache"))
            with pytest.raises(DataError, match=r"cache/datasets cannot be written: .*permissions.*LTCORE_CACHE"):
                prepare(DataConfig(uri=images))
            with pytest.raises(DataError, match="canvas cache cannot be written"):
                open_canvases(ShardStore(str(small)), "train", 4, cache_bytes=GIB)
            with pytest.raises(DataError, match=r"cannot be fetched into .*Check access"):
                everything(ShardStore(remote))
        assert list(place.iterdir()) == []
    assert read_manifest(prepare(DataConfig(uri=images))).name == "pets"
