"""Decoded canvases of one split in one memory-mapped array per node, shared by all processes through the page cache.

An entry is a folder ``canvases/<manifest hash>-<split>-<canvas>/`` with the raw uint8 array and ``meta.json``. It is filled
aside under a lock, so that of several processes one does the work, and renamed when it is complete: a killed fill leaves
a ``.partial`` folder that is never read and that the next fill removes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ltcore.data import storage
from ltcore.data.decode import DECODE_VERSION
from ltcore.data.store import BadSamples, ShardStore, decode_rows
from ltcore.errors import DataError

_LOG = logging.getLogger("ltcore.data")
_ROWS = 256
_ARRAY, _META = "canvases.u8", "meta.json"


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
    progress: Callable[[int, int], None] | None = None,
) -> CanvasCache:
    """The decoded split; fills the entry first if this node has none, which other processes wait for.

    Args:
        cache_bytes: most bytes of all entries together; the least recently used that nobody has open go first.
        max_bad_samples: how many undecodable training images are tolerated, see ``decode_rows``.
        progress: called with (rows done, rows) while the entry is filled, from the calling thread.

    DataError where the entry does not fit the cap or the disk, cannot be written, or has too many bad samples.
    """
    path = entry_path(store, split, canvas)
    shape = (store.manifest.split(split).num_samples, 3, canvas, canvas)
    try:
        with storage.locked(path.with_name(f"{path.name}.lock")):
            opened = _open(path, shape)
            if opened is not None and opened.bad:  # those who fill an entry are told as they go
                _LOG.warning(
                    "%s: %d images of %s cannot be decoded and are replaced by others of their class; the first: %s",
                    store.uri,
                    len(opened.bad),
                    split,
                    opened.bad[min(opened.bad)],
                )
            if opened is None:
                aside = path.with_name(f"{path.name}.partial")
                try:
                    _reserve(path, aside, int(np.prod(shape)), cache_bytes)
                    bad = BadSamples(max_bad_samples)
                    _fill(aside / _ARRAY, store, split, shape, bad, progress)
                    storage.write_bytes_atomic(
                        str(aside / _META), json.dumps({"bad": bad.messages}, sort_keys=True).encode()
                    )
                    aside.rename(path)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
                storage.sync_folder(path.parent)
                opened = _open(path, shape)
    except OSError as error:
        raise DataError(
            f"{path.parent}: the canvas cache cannot be written: {error}. Free space, set LTCORE_CACHE to another disk, "
            "or use data.tier=threads."
        ) from error
    if opened is None:
        raise DataError(f"{path}: the canvas cache vanished while it was opened. Remove the folder and start again.")
    if len(opened.bad) > max_bad_samples:
        opened.close()
        raise DataError(
            f"{opened.bad[min(opened.bad)]} {len(opened.bad)} training images are undecodable; "
            f"data.max_bad_samples={max_bad_samples}."
        )
    return opened


def _open(path: Path, shape: tuple[int, ...]) -> CanvasCache | None:
    """The complete entry, or None. The shared lock on the array tells evictors that it is in use."""
    with storage.locked(path.with_name("evict.lock")):
        array = path / _ARRAY
        if not array.is_file() or array.stat().st_size != int(np.prod(shape)):
            return None
        try:
            bad = {int(index): message for index, message in json.loads((path / _META).read_bytes())["bad"].items()}
        except (OSError, ValueError, KeyError):  # someone's damage: filled again
            return None
        os.utime(path)
        stream = array.open("rb")
        fcntl.flock(stream, fcntl.LOCK_SH)
    if shape[0] == 0:  # an empty file cannot be mapped
        return CanvasCache(np.zeros(shape, np.uint8), {}, stream)
    return CanvasCache(np.memmap(array, np.uint8, "r", shape=shape).view(np.ndarray), bad, stream)


def _reserve(path: Path, aside: Path, size: int, cache_bytes: int) -> None:
    """Makes room under the cap and takes the disk space, so that a full disk shows before the work."""
    with storage.locked(path.with_name("evict.lock")):
        for stale in (aside, path):  # of a killed fill, or damaged
            shutil.rmtree(stale, ignore_errors=True)
        arrays = sorted(path.parent.glob(f"*/{_ARRAY}"), key=lambda array: array.parent.stat().st_mtime)
        total = sum(array.stat().st_size for array in arrays)
        for array in arrays:
            if total + size <= cache_bytes:
                break
            freed = array.stat().st_size
            if _evict(array):
                total -= freed
        if total + size > cache_bytes:
            raise DataError(
                f"The decoded canvases need {size} bytes, {total} are in use, and data.cache_bytes={cache_bytes}. "
                "Raise it or use data.tier=threads."
            )
        aside.mkdir(parents=True)
        with (aside / _ARRAY).open("wb") as stream:
            if size:
                os.posix_fallocate(stream.fileno(), 0, size)


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


def _fill(
    array: Path,
    store: ShardStore,
    split: str,
    shape: tuple[int, ...],
    bad: BadSamples,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decodes all rows into the file; plain writes, because a full disk under a memory map is a signal, not an error."""
    num_rows, canvas = shape[0], shape[-1]
    row_bytes = canvas_bytes(1, canvas)
    with array.open("r+b", buffering=0) as stream:
        descriptor = stream.fileno()

        def fill(first: int) -> int:
            index_n = np.arange(first, min(first + _ROWS, num_rows))
            view = decode_rows(store, split, index_n, canvas, bad).data.cast("B")
            offset = first * row_bytes
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
            return len(index_n)

        done = 0
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="ltcore-canvases")
        try:
            for count in pool.map(fill, range(0, num_rows, _ROWS)):
                done += count
                if progress is not None:
                    progress(done, num_rows)
        finally:
            pool.shutdown(cancel_futures=True)
        os.fsync(descriptor)
