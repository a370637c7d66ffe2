"""What a cache gives out is what was decoded, whatever becomes of its files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from ltcore.data.loading.cache_entry import ARRAY
from ltcore.data.loading.canvas_cache import canvas_bytes, entry_path, open_canvases
from ltcore.data.loading.checksums import RowChecks, checksum
from ltcore.data.loading.original_cache import images_path, open_images
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError

GIB = 2**30
EVERY_N = np.arange(46)


def change(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_checksum_is_the_crc32_of_the_bytes() -> None:
    assert checksum(np.frombuffer(b"123456789", np.uint8)) == 0xCBF43926  # the check value of CRC-32/ISO-HDLC


def test_a_damaged_canvas_is_decoded_anew_and_put_back(tiny_shards: str, caplog: pytest.LogCaptureFixture) -> None:
    store = ShardStore(tiny_shards)
    open_canvases(store, "train", 16, cache_bytes=GIB).close()
    file = entry_path(store, "train", 16) / ARRAY
    sound = file.read_bytes()
    change(file, 7 * canvas_bytes(1, 16) + 5)
    expected = decode_rows(store, "train", EVERY_N, 16)
    opened = open_canvases(store, "train", 16, cache_bytes=GIB)
    with caplog.at_level(logging.WARNING, "ltcore.data"):
        np.testing.assert_array_equal(opened.take(EVERY_N[::-1]), expected[::-1])
        np.testing.assert_array_equal(opened.take(np.array([7, 7, 3])), expected[[7, 7, 3]])
    assert [record.message for record in caplog.records] == [
        f"{file}: row 7 is damaged, and was decoded anew. Check the disk and the memory."
    ]
    assert file.read_bytes() == sound


def test_a_damaged_whole_image_is_decoded_anew_and_put_back(tiny_shards: str) -> None:
    store = ShardStore(tiny_shards)
    before = open_images(store, "train", 12, cache_bytes=GIB)
    expected = [before.image(index)[0].copy() for index in range(46)]
    before.close()
    file = images_path(store, "train", 12) / ARRAY
    sound = file.read_bytes()
    for at in range(0, len(sound), 1000):
        change(file, at)
    opened = open_images(store, "train", 12, cache_bytes=GIB)
    for index in range(46):
        np.testing.assert_array_equal(opened.image(index)[0], expected[index])
    assert file.read_bytes() == sound


def test_what_cannot_be_written_back_is_decoded_each_time(
    tiny_shards: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ShardStore(tiny_shards)
    open_canvases(store, "val", 16, cache_bytes=GIB).close()
    change(entry_path(store, "val", 16) / ARRAY, 0)
    opened = open_canvases(store, "val", 16, cache_bytes=GIB)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with caplog.at_level(logging.WARNING, "ltcore.data"):
        rows = [opened.take(np.array([0])) for _ in range(2)]
    monkeypatch.undo()
    expected = decode_rows(store, "val", np.array([0]), 16)
    assert all((row == expected).all() for row in rows)
    assert len(caplog.records) == 2


def test_a_row_is_compared_once(tmp_path: Path) -> None:
    rows_N4 = np.arange(8, dtype=np.uint8).reshape(2, 4)
    checks = RowChecks(tmp_path / "rows", np.array([checksum(row) for row in rows_N4], np.uint32), rows_N4.__getitem__)
    assert checks.unread(np.array([1, 0, 1])) == [0, 1, 2]
    assert checks.repaired(1, rows_N4[1], 4) is None
    assert checks.unread(np.array([1, 0, 1])) == [1]


def test_an_image_that_gives_another_row_by_now_is_refused(tmp_path: Path) -> None:
    checks = RowChecks(tmp_path / "rows", np.array([5], np.uint32), lambda _: np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=r"rows: row 0 is damaged.*Remove the folder and run again"):
        checks.repaired(0, np.ones(4, np.uint8), 0)


@pytest.mark.parametrize("file", ["rows.crc32", "meta.json"])
def test_a_damaged_record_of_an_entry_fills_it_again(tiny_shards: str, file: str) -> None:
    store = ShardStore(tiny_shards)
    open_canvases(store, "val", 16, cache_bytes=GIB).close()
    path = entry_path(store, "val", 16) / file
    sound = path.read_bytes()
    change(path, len(sound) // 2)
    open_canvases(store, "val", 16, cache_bytes=GIB).close()
    assert path.read_bytes() == sound
