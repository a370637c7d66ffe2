"""Decoded canvases of one split in one memory-mapped array per node, shared by all processes through the page cache.

An entry is a folder ``canvases/<manifest hash>-<split>-<canvas>/`` with the raw uint8 array and ``meta.json``. It is filled
aside under a lock, so that of several processes one does the work, and renamed when it is complete: a killed fill leaves
a ``.partial`` folder that is never read and that the next fill removes. ``ltcore.data.loading.original_cache`` keeps whole
images in entries beside these, under the same cap.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ltcore import storage
from ltcore.data.images.decode import DECODE_VERSION
from ltcore.data.shards.reader import BadSamples, ShardStore, decode_rows
from ltcore.errors import DataError

_LOG = logging.getLogger("ltcore.data")
_ROWS = 256
ARRAY, _META = "canvases.u8", "meta.json"

Progress = Callable[[int, int], None]


class NoRoomError(DataError):
    """The cap or the disk leaves no room for an entry; what does not need the cache goes on without it."""


def canvas_bytes(num_samples: int, canvas: int) -> int:
    """Size of the decoded split."""
    return num_samples * 3 * canvas * canvas


@dataclass(frozen=True)
class CanvasCache:
    """An open entry. It is marked as in use, and so not evicted, until it is closed or its process ends."""

    canvases_N3SS: npt.NDArray[np.uint8]
    """Read-only memory map."""
    bad: dict[int, str]
    """Undecodable samples that hold a substitute -> what is wrong."""
    _file: BinaryIO

    def close(self) -> None:
        """Gives up the mark; the array stays valid as long as it is referred to."""
        self._file.close()


def entry_path(store: ShardStore, split: str, canvas: int) -> Path:
    """Where the entry of a split is, or would be."""
    name = f"{store.manifest.hash[:20]}-{split}-{canvas}-v{DECODE_VERSION}"
    return storage.cache_root() / "canvases" / name


def open_canvases(
    store: ShardStore,
    split: str,
    canvas: int,
    *,
    cache_bytes: int,
    max_bad_samples: int = 0,
    progress: Progress | None = None,
) -> CanvasCache:
    """The decoded split; fills the entry first if this node has none, which other processes wait for.

    Args:
        cache_bytes: most bytes of all entries together; the least recently used that nobody has open go first.
        max_bad_samples: how many undecodable training images are tolerated, see ``decode_rows``.
        progress: called with (rows done, rows) while the entry is filled, from the calling thread.

    NoRoomError where the entry does not fit the cap or the disk, DataError where it cannot be written or has too many bad
    samples.
    """
    shape = (store.manifest.split(split).num_samples, 3, canvas, canvas)
    size = int(np.prod(shape))

    def fill(filling: Filling) -> None:
        filling.claim(size)
        _fill(filling, store, split, shape, progress)

    path = entry_path(store, split, canvas)
    file, bad = open_entry(
        path,
        store,
        split,
        lambda: (path / ARRAY).stat().st_size == size,
        fill,
        cache_bytes=cache_bytes,
        max_bad_samples=max_bad_samples,
    )
    if not size:  # an empty file cannot be mapped
        return CanvasCache(np.zeros(shape, np.uint8), {}, file)
    return CanvasCache(np.memmap(path / ARRAY, np.uint8, "r", shape=shape).view(np.ndarray), bad, file)


@dataclass(frozen=True)
class Filling:
    """An entry that is being filled: the folder aside, the bad samples met so far, and room in its array."""

    folder: Path
    bad: BadSamples
    cache_bytes: int

    def claim(self, size: int) -> None:
        """Makes room under the cap and takes the disk space, so that a full disk shows before the work."""
        with storage.locked(self.folder.with_name("evict.lock")):
            own = self.folder / ARRAY
            arrays = [array for array in self.folder.parent.glob(f"*/{ARRAY}") if array != own]
            arrays.sort(key=lambda array: array.parent.stat().st_mtime)
            total = sum(array.stat().st_size for array in arrays)
            for array in arrays:
                if total + size <= self.cache_bytes:
                    break
                freed = array.stat().st_size
                if _evict(array):
                    total -= freed
            if total + size > self.cache_bytes:
                raise NoRoomError(
                    f"The decoded images need {size} bytes, {total} are in use, and data.cache_bytes={self.cache_bytes}. "
                    "Raise it or use data.tier=threads."
                )
            with own.open("ab") as stream:
                if size:
                    os.posix_fallocate(stream.fileno(), 0, size)


def open_entry(
    path: Path,
    store: ShardStore,
    split: str,
    whole: Callable[[], bool],
    fill: Callable[[Filling], None],
    *,
    cache_bytes: int,
    max_bad_samples: int,
) -> tuple[BinaryIO, dict[int, str]]:
    """The entry at ``path``, filled first if need be: its array, open and marked as in use, and its bad samples.

    Args:
        whole: whether its files have the sizes that they must have; OSError where one is missing.
        fill: writes all files but ``meta.json`` into the folder aside.
    """
    try:
        with storage.locked(path.with_name(f"{path.name}.lock")):
            opened = _open(path, whole)
            if opened is not None and opened[1]:  # those who fill an entry are told as they go
                _LOG.warning(
                    "%s: %d images of %s cannot be decoded and are replaced by others of their class; the first: %s",
                    store.uri,
                    len(opened[1]),
                    split,
                    opened[1][min(opened[1])],
                )
            if opened is None:
                aside = path.with_name(f"{path.name}.partial")
                with storage.locked(path.with_name("evict.lock")):
                    for stale in (aside, path):  # of a killed fill, or damaged
                        shutil.rmtree(stale, ignore_errors=True)
                    aside.mkdir(parents=True)
                filling = Filling(aside, BadSamples(max_bad_samples), cache_bytes)
                try:
                    fill(filling)
                    meta = json.dumps({"bad": filling.bad.messages}, sort_keys=True)
                    storage.write_bytes_atomic(str(aside / _META), meta.encode())
                    with storage.locked(path.with_name("evict.lock")):  # others count the bytes of all entries under it
                        aside.rename(path)
                finally:
                    with storage.locked(path.with_name("evict.lock")):
                        shutil.rmtree(aside, ignore_errors=True)
                storage.sync_folder(path.parent)
                opened = _open(path, whole)
    except OSError as error:
        kind = NoRoomError if error.errno in (errno.ENOSPC, errno.EDQUOT) else DataError
        raise kind(
            f"{path.parent}: the canvas cache cannot be written: {error}. Free space, set LTCORE_CACHE to another disk, "
            "or use data.tier=threads."
        ) from error
    if opened is None:
        raise DataError(f"{path}: the canvas cache vanished while it was opened. Remove the folder and start again.")
    file, bad = opened
    if len(bad) > max_bad_samples:
        file.close()
        raise DataError(
            f"{bad[min(bad)]} {len(bad)} training images are undecodable; data.max_bad_samples={max_bad_samples}."
        )
    return opened


def _open(path: Path, whole: Callable[[], bool]) -> tuple[BinaryIO, dict[int, str]] | None:
    """The complete entry, or None. The shared lock on the array tells evictors that it is in use."""
    with storage.locked(path.with_name("evict.lock")):
        try:
            if not whole():
                return None
            bad = {int(index): message for index, message in json.loads((path / _META).read_bytes())["bad"].items()}
        except (OSError, ValueError, KeyError):  # not there, or someone's damage: filled again
            return None
        os.utime(path)
        stream = (path / ARRAY).open("rb")
        fcntl.flock(stream, fcntl.LOCK_SH)
    return stream, bad


def _evict(array: Path) -> bool:
    """Removes an entry unless someone has it open, or, where it is incomplete, is filling it."""
    name = array.parent.name
    lock = array.parent.with_name(f"{name.removesuffix('.partial')}.lock") if name.endswith(".partial") else array
    with lock.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(array.parent)
        return True


def _fill(filling: Filling, store: ShardStore, split: str, shape: tuple[int, ...], progress: Progress | None) -> None:
    """Decodes all rows into the file; plain writes, because a full disk under a memory map is a signal, not an error."""
    num_rows, canvas = shape[0], shape[-1]
    with (filling.folder / ARRAY).open("r+b", buffering=0) as stream:

        def fill(first: int) -> int:
            index_n = np.arange(first, min(first + _ROWS, num_rows))
            canvases = decode_rows(store, split, index_n, canvas, filling.bad)
            write_at(stream, first * canvas_bytes(1, canvas), canvases)
            return len(index_n)

        in_threads(fill, range(0, num_rows, _ROWS), num_rows, progress)
        os.fsync(stream.fileno())


def in_threads(fill: Callable[[int], int], firsts: range, num_rows: int, progress: Progress | None) -> None:
    """``fill(first row)`` for every piece, on all CPUs; each gives the number of its rows."""
    done = 0
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="ltcore-canvases")
    try:
        for count in pool.map(fill, firsts):
            done += count
            if progress is not None:
                progress(done, num_rows)
    finally:
        pool.shutdown(cancel_futures=True)


def write_at(stream: FileIO, offset: int, array: npt.NDArray[np.uint8]) -> None:
    """The whole array at a place in the file."""
    view = array.data.cast("B")
    while view:
        written = os.pwrite(stream.fileno(), view, offset)
        view, offset = view[written:], offset + written
