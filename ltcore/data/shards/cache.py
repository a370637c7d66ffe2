"""Raw shards of remote data on this node's disk: each is downloaded once, checked, and shared by all processes.

Beside the finished ``<sha256>.tar`` files, and ``<sha256>.npy`` files of labels, lie ``<sha256>.partial`` files, one per
download, at their final size from the start and locked by their process. So all files together, finished or not, keep the
cap, and a partial file that nobody locks was left by a killed process and goes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ltcore import storage
from ltcore.data.shards.manifest import LabelTable, Shard
from ltcore.data.shards.verified import verify
from ltcore.errors import DataError, StorageError
from ltcore.retry import retrying

_LOG = logging.getLogger("ltcore.data")
_WAIT_S = 0.05
"""Between two looks for room, while other downloads take all of it."""


def cached_path(shard: Shard | LabelTable) -> Path:
    """Returns the path that a shard of remote data, or its labels, has on this node, or would have."""
    return storage.cache_root() / "shards" / f"{shard.sha256}{'.tar' if isinstance(shard, Shard) else '.npy'}"


def open_stored(where: str, file: Shard | LabelTable, cache_bytes: int, remedy: str) -> int:
    """Returns a readable file descriptor of a file of a data set: of itself, or of this node's copy where it is remote.

    Raises DataError with the ``remedy`` where it is not what the manifest says.
    """
    if not storage.is_local(where):
        return fetch(where, file, cache_bytes)
    path = storage.local_path(where)
    try:
        found = path.stat()
        if not storage.is_plain(found):
            raise DataError(f"{where} is no plain file. {remedy}")
        if found.st_size != file.bytes:
            raise DataError(f"{where}: found {found.st_size} bytes, expected {file.bytes} by the manifest. {remedy}")
        descriptor = os.open(path, os.O_RDONLY)
        try:
            verify(descriptor, path, file, remedy)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    except OSError as error:
        raise DataError(f"{where} cannot be opened: {error.strerror}. Restore it or its permissions.") from error


def fetch(uri: str, shard: Shard | LabelTable, cache_bytes: int, damaged: int | None = None) -> int:
    """Returns a readable file descriptor of the shard at the remote ``uri``.

    A copy that the descriptor ``damaged`` is of goes first. The file's name is its sha256, so equal shards of several data
    sets are one file. The least recently used files go when ``cache_bytes`` would be exceeded; where downloads of others
    leave no room, this waits for their end. A descriptor that is open stays readable, and its disk space taken, until it
    is closed. Raises DataError where the download differs from the manifest, is larger than ``cache_bytes``, or cannot be
    stored.
    """
    path = cached_path(shard)
    folder = path.parent
    try:
        with storage.locked(folder / f"{shard.sha256[:2]}.lock"):  # few locks, so that few files lie about
            if damaged is not None:
                _discard(path, damaged)
            if (found := _open(path, shard.bytes)) is not None:
                return found
            if shard.bytes > cache_bytes:
                raise DataError(f"{uri} has {shard.bytes} bytes, more than data.cache_bytes={cache_bytes}. Raise it.")
            aside = path.with_suffix(".partial")
            with _reserved(aside, shard.bytes, cache_bytes) as target:
                _download(uri, shard, target)
                descriptor = os.open(aside, os.O_RDONLY)
                with storage.locked(folder / "evict.lock"):  # under which others count it, as one file and not as two
                    aside.replace(path)
                return descriptor
    except OSError as error:
        raise StorageError(f"{uri} cannot be fetched into {folder}: {error}. Check access and free space.") from error


def _discard(path: Path, damaged: int) -> None:
    """Removes the file if it is the one that ``damaged`` is open on: others may have fetched it again meanwhile."""
    with storage.locked(path.parent / "evict.lock"), contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(damaged)):
            path.unlink()
            _LOG.warning("this node's copy %s was damaged and is fetched again", path)


def _open(path: Path, size: int) -> int | None:
    """Returns a descriptor of the file if it exists and has that size, and marks it as used now.

    The file may be evicted at any time.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # which waits for no writer of a pipe
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == size:
        os.utime(descriptor)
        return descriptor
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _reserved(aside: Path, size: int, cache_bytes: int) -> Iterator[BinaryIO]:
    """Yields the locked file ``aside`` with its disk space taken.

    At the end it is removed if it still has that name.
    """
    try:
        while (target := _reserve(aside, size, cache_bytes)) is None:
            time.sleep(_WAIT_S)
        with target:
            retrying(str(aside.parent), lambda: _take(target, size, aside.parent))
            yield target
    finally:
        aside.unlink(missing_ok=True)


def _reserve(aside: Path, size: int, cache_bytes: int) -> BinaryIO | None:
    """Makes room under the cap and takes it by a file of the final size.

    Returns None while others' downloads leave no room.
    """
    folder = aside.parent
    with storage.locked(folder / "evict.lock"):
        running = sum(_size_if_running(partial) for partial in folder.glob("*.partial"))
        if running + size > cache_bytes:
            return None
        kept = _kept(folder)
        total = running + sum(stat.st_size for stat, _ in kept)
        for stat, path in kept:
            if total + size <= cache_bytes:
                break
            path.unlink()
            total -= stat.st_size
        target = aside.open("wb")
        fcntl.flock(target, fcntl.LOCK_EX)
        target.truncate(size)
        return target


def _kept(folder: Path) -> list[tuple[os.stat_result, Path]]:
    """Returns the whole files of the cache, the least recently used first."""
    files = (path for ending in ("tar", "npy") for path in folder.glob(f"*.{ending}"))
    return sorted(((path.stat(), path) for path in files), key=lambda pair: pair[0].st_mtime)


def _take(target: BinaryIO, size: int, folder: Path) -> None:
    """Takes the disk space of a file. Where the disk is smaller than the cap, the least recently used files go first."""
    while True:
        try:
            os.posix_fallocate(target.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            with storage.locked(folder / "evict.lock"):
                kept = _kept(folder)
                if not kept:
                    raise
                kept[0][1].unlink()


def _size_if_running(partial: Path) -> int:
    """Returns the size of a file that another process still writes, else 0.

    Then the file was finished meanwhile, or its process is gone; what such a process left is removed.
    """
    try:
        with partial.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return os.fstat(stream.fileno()).st_size
            partial.unlink(missing_ok=True)
            return 0
    except FileNotFoundError:
        return 0


def _download(uri: str, shard: Shard | LabelTable, target: BinaryIO) -> None:
    """Fills ``target``, which has the expected size. Raises DataError where something else arrives."""
    digest, count = hashlib.sha256(), 0

    def begin() -> Callable[[bytes], None]:
        nonlocal digest, count
        digest, count = hashlib.sha256(), 0
        target.seek(0)
        return take

    def take(piece: bytes) -> None:
        nonlocal count
        count += len(piece)
        if count > shard.bytes:
            raise _damaged(uri, shard, f"more than {shard.bytes} bytes")
        digest.update(piece)
        target.write(piece)

    storage.pass_on(uri, begin)
    if digest.hexdigest() != shard.sha256:
        raise _damaged(uri, shard, f"{count} bytes with sha256 {digest.hexdigest()[:12]}...")
    target.flush()


def _damaged(uri: str, shard: Shard | LabelTable, found: str) -> DataError:
    damaged, them = ("The shard is damaged", "it") if isinstance(shard, Shard) else ("The labels are damaged", "them")
    return DataError(
        f"{uri}: {found}, expected {shard.bytes} bytes with {shard.sha256[:12]}... by the manifest. {damaged}: restore {them} "
        "or make the data set again."
    )
