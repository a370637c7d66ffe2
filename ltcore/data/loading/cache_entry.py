"""Entries of the node's cache: filled aside under a lock, renamed when complete, evicted by age.

``meta.json`` holds a checksum of itself and of every small file beside it, and ``rows.crc32`` one of each row, so that a
damaged entry is filled again and a damaged row decoded again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ltcore import storage
from ltcore.data.loading.checksums import checksum
from ltcore.data.loading.samples import BadSamples
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.retry import still_here

_LOG = logging.getLogger("ltcore.data")

ARRAY, _META, _ROWS = "canvases.u8", "meta.json", "rows.crc32"

OnProgress = Callable[[int, int], None]


class NoRoomError(DataError):
    """The cap or the disk leaves no room for an entry; what does not need the cache goes on without it."""


@dataclass(frozen=True)
class PartialEntry:
    """An entry that is being filled: the folder aside, the bad samples met so far, and room in its array."""

    folder: Path
    bad: BadSamples
    cache_bytes: int
    crc32_N: npt.NDArray[np.uint32]
    """Checksums of the rows that were written."""

    def note(self, first: int, rows: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Notes the checksums of rows from ``first`` on, as they are written."""
        for index, row in enumerate(rows, first):
            self.crc32_N[index] = checksum(row)

    def claim(self, size: int) -> None:
        """Makes room under the cap and takes the disk space, so that a full disk is noticed before the work."""
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
                    "Raise it or use data.loader=threads."
                )
            with own.open("ab") as stream:
                if size:
                    os.posix_fallocate(stream.fileno(), 0, size)


@dataclass(frozen=True)
class OpenEntry:
    """A complete entry that is open, and so marked as in use."""

    file: BinaryIO
    """The array."""
    bad: dict[int, str]
    """Undecodable samples that hold a substitute -> what is wrong."""
    crc32_N: npt.NDArray[np.uint32]
    """Checksum of each row."""


def open_entry(
    path: Path,
    store: ShardStore,
    split: str,
    whole: Callable[[], bool],
    fill: Callable[[PartialEntry], None],
    *,
    cache_bytes: int,
    max_bad_samples: int,
) -> OpenEntry:
    """Opens the entry at ``path``, filled first where necessary.

    Args:
        whole: whether its files have the sizes that they must have; OSError where one is missing.
        fill: writes all files but ``meta.json`` into the folder aside.
    """
    num_rows = store.manifest.split(split).num_samples
    try:
        with storage.locked(path.with_name(f"{path.name}.lock")):
            opened = _open(path, whole)
            if opened is None:
                crc32_N = np.zeros(num_rows, np.uint32)
                _fill(path, fill, PartialEntry(_aside(path), BadSamples(max_bad_samples), cache_bytes, crc32_N))
                opened = _open(path, whole)
            elif opened.bad:  # those who fill an entry are told as they go
                _warn_of_bad(store.uri, split, opened.bad)
    except OSError as error:
        kind = NoRoomError if error.errno in (errno.ENOSPC, errno.EDQUOT) else DataError
        raise kind(
            f"{path.parent}: the canvas cache cannot be written: {error}. Free space, set LTCORE_CACHE to another disk, "
            "or use data.loader=threads."
        ) from error
    if opened is None:
        raise DataError(f"{path}: the canvas cache vanished while it was opened. Remove the folder and start again.")
    bad = opened.bad
    if len(bad) > max_bad_samples:
        opened.file.close()
        raise DataError(
            f"{bad[min(bad)]} {len(bad)} training images are undecodable; data.max_bad_samples={max_bad_samples}."
        )
    return opened


def _fill(path: Path, fill: Callable[[PartialEntry], None], entry: PartialEntry) -> None:
    """Fills an entry aside and moves it to its place, or leaves nothing behind.

    The caller holds the entry's lock.
    """
    lock = path.with_name("evict.lock")  # others count the bytes of all entries under it
    with storage.locked(lock):
        for stale in (entry.folder, path):  # of a killed fill, or damaged
            shutil.rmtree(stale, ignore_errors=True)
        entry.folder.mkdir(parents=True)
    try:
        fill(entry)
        storage.write_bytes_atomic(str(entry.folder / _ROWS), entry.crc32_N.tobytes())
        small = sorted(file for file in entry.folder.iterdir() if file.name != ARRAY)
        of_files = {file.name: zlib.crc32(file.read_bytes()) for file in small}
        content = {"bad": {str(index): message for index, message in entry.bad.messages.items()}, "crc32": of_files}
        storage.write_json(entry.folder / _META, {"content": content, "crc32": _of_content(content)})
        with storage.locked(lock):
            entry.folder.rename(path)
    finally:
        with storage.locked(lock):
            shutil.rmtree(entry.folder, ignore_errors=True)
    storage.sync_to_disk(path.parent)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _warn_of_bad(uri: str, split: str, bad: dict[int, str]) -> None:
    _LOG.warning(
        "%s: %d images of %s cannot be decoded and are replaced by others of their class; the first: %s",
        uri,
        len(bad),
        split,
        bad[min(bad)],
    )


def _of_content(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _open(path: Path, whole: Callable[[], bool]) -> OpenEntry | None:
    """Opens the complete entry; None where there is none.

    The shared lock on the array tells evictors that it is in use.
    """
    with storage.locked(path.with_name("evict.lock")):
        try:
            content = _undamaged(path)
            if content is None or not whole():
                return None
            crc32_N = np.frombuffer(storage.read_bytes(str(path / _ROWS)), np.uint32)
        except (OSError, DataError):  # not there, or someone's damage: filled again
            return None
        os.utime(path)
        stream = (path / ARRAY).open("rb")
        fcntl.flock(stream, fcntl.LOCK_SH)
    return OpenEntry(stream, {int(index): message for index, message in content["bad"].items()}, crc32_N)


def _undamaged(path: Path) -> dict[str, Any] | None:
    """Returns what ``meta.json`` says; None where it, or a small file beside it, has another checksum."""
    meta = storage.read_json(path / _META)
    if meta is None or "content" not in meta or meta.get("crc32") != _of_content(meta["content"]):
        return None
    content: dict[str, Any] = meta["content"]
    files = content["crc32"].items()
    return content if all(zlib.crc32(storage.read_bytes(str(path / name))) == crc for name, crc in files) else None


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


def in_threads(fill: Callable[[int], int], firsts: range, num_rows: int, progress: OnProgress | None) -> None:
    """Calls ``fill(first row)`` for every piece, on all CPUs; each call returns the number of its rows."""
    done = 0
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="ltcore-canvases")
    try:
        for count in pool.map(fill, firsts):
            done += count
            still_here()
            if progress is not None:
                progress(done, num_rows)
    finally:
        pool.shutdown(cancel_futures=True)


def write_at(stream: FileIO, offset: int, array: npt.NDArray[np.uint8]) -> None:
    """Writes the whole array at a place in the file."""
    view = array.data.cast("B")
    while view:
        written = os.pwrite(stream.fileno(), view, offset)
        view, offset = view[written:], offset + written
