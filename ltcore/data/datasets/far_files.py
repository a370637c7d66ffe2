"""Images that lie anywhere, named one by one: on a disk or in a store, from which several are fetched at a time."""

from __future__ import annotations

import os
import posixpath
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ltcore import storage
from ltcore.data.datasets.columns import Texts
from ltcore.data.datasets.image_root import check_size, digest
from ltcore.errors import DataError
from ltcore.fsspec_stores import FileInfo
from ltcore.limits import HELD_BYTES, MAX_IMAGE_BYTES

AHEAD = 64
"""Images that are on their way or wait to be used at once, ``HELD_BYTES`` of them; a larger image comes alone."""
THREADS = 16
UNKNOWN_BYTES = 2 * 2**20
"""Of an image whose size the store does not tell, as much is fetched ahead; a larger one is fetched when it is its turn."""


class FarFiles:
    """Files by path, each with its own place; reading ahead follows what was announced."""

    by_content = False
    skipped: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    def __init__(self, where: str, uris: Mapping[str, str], infos: Mapping[str, FileInfo]) -> None:
        """Takes the place for messages, and for each path its URI and what is known of the file."""
        self.where, self.files = where, Texts.of(sorted(uris))
        self._uris, self._infos = uris, infos
        self.fingerprint = digest(
            f"{path}\0{infos[path].size}\0{infos[path].version or uris[path]}" for path in self.files
        )
        self._next: deque[str] = deque()
        self._coming: deque[tuple[str, Future[bytes | None]]] = deque()
        self._bytes = 0
        self._pool: ThreadPoolExecutor | None = None

    def announce(self, paths: Sequence[str]) -> None:
        """Starts to fetch the files in this order; what was announced before is forgotten."""
        for _, coming in self._coming:
            coming.cancel()
        self._coming.clear()
        self._next, self._bytes = deque(paths), 0
        self._fetch_ahead()

    def read(self, path: str) -> bytes:
        if not self._coming or self._coming[0][0] != path:  # out of turn
            return self._fetch(path)
        coming = self._coming.popleft()[1]
        try:
            data = coming.result()
            return self._fetch(path) if data is None else data
        finally:
            self._bytes -= self._size(path)
            self._fetch_ahead()

    def part(self, paths: Iterable[str]) -> FarFiles:
        chosen = list(paths)
        return FarFiles(self.where, {p: self._uris[p] for p in chosen}, {p: self._infos[p] for p in chosen})

    def _fetch_ahead(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        while self._next and len(self._coming) < AHEAD:
            size = self._size(self._next[0])
            if self._coming and self._bytes + size > HELD_BYTES:
                break
            path = self._next.popleft()
            self._coming.append((path, self._pool.submit(self._fetch_early, path)))
            self._bytes += size
        if not self._next:  # nothing more is to come, so idle threads end
            self._pool.shutdown(wait=False)
            self._pool = None

    def _size(self, path: str) -> int:
        size = self._infos[path].size
        return UNKNOWN_BYTES if size < 0 else size

    def _fetch(self, path: str) -> bytes:
        size = self._infos[path].size
        check_size(self.where, path, size)
        return storage.read_bytes(self._uris[path], most_bytes=MAX_IMAGE_BYTES if size < 0 else size)

    def _fetch_early(self, path: str) -> bytes | None:
        """Fetches a file before its turn; None where that is left to its turn, as it is larger than was counted on."""
        if self._infos[path].size >= 0:
            return self._fetch(path)
        try:
            return storage.read_bytes(self._uris[path], most_bytes=UNKNOWN_BYTES)
        except DataError:
            return None


def place_of(path: str, folder: str) -> str:
    """Returns the URI of an image that a file in ``folder`` lists: relative to it, absolute, or a URI of its own."""
    if "://" in path:
        return str(storage.local_path(path)) if storage.is_local(path) else path
    if not storage.is_local(folder):
        return storage.join(folder, path)
    return os.path.join(folder, path)  # noqa: PTH118 - keeps an absolute path, and ``..`` for the file system to follow


def normal_path(path: str, folder: str) -> str:
    """Returns one spelling for every way to write the path of an image; inside of ``folder`` it is relative."""
    if "://" in path and not storage.is_local(path):
        return path.removeprefix(f"{folder.rstrip('/')}/")
    plain = posixpath.normpath(path.removeprefix("file://"))
    return plain.removeprefix(f"{folder.rstrip('/')}/") if storage.is_local(folder) else plain


def look_up(uris: Iterable[str]) -> dict[str, FileInfo]:
    """Returns what is known of those files that exist; each folder of a store is listed once.

    Addresses in the web are taken as they are: they can neither be listed nor asked for in large numbers.
    """
    found: dict[str, FileInfo] = {}
    folders: dict[str, set[str]] = {}
    for uri in uris:
        if storage.is_local(uri):
            if info := _local(uri):
                found[uri] = info
        elif storage.is_web(uri):
            found[uri] = FileInfo(uri, -1, "")
        else:
            folders.setdefault(posixpath.dirname(uri), set()).add(uri)
    with ThreadPoolExecutor(THREADS) as pool:
        for folder, infos in zip(folders, pool.map(_files_of, folders), strict=True):
            there = {storage.join(folder, info.name): info for info in infos}
            found |= {uri: there[uri] for uri in folders[folder] & there.keys()}
    return found


def _files_of(folder: str) -> list[FileInfo]:
    return storage.describe_files(folder, recursive=False)


def _local(path: str) -> FileInfo | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a million of them
    except OSError:
        return None
    if not storage.is_plain(found):  # reading a pipe would wait for ever
        raise DataError(f"{path} is no plain file. Remove it from the list.")
    return FileInfo(path, found.st_size, str(found.st_mtime_ns))
