"""Reads samples by index: labels and attributes as arrays, encoded images by offset, every row checked.

A row is read together with its tar header, in one call, and must have the length, the member name and the crc32 that
the index says. Index and tar must have the sha256 that the manifest says; a local tar is hashed when this node first opens
it. So a short, stale or damaged file is an error that names file and key, never a lost or exchanged sample. Names in tars of
others follow no rule, so theirs are not compared.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ltcore import storage
from ltcore.data.shards.cache import cached_path, fetch, open_stored
from ltcore.data.shards.labels import Labels, open_labels
from ltcore.data.shards.manifest import Manifest, Shard, read_manifest
from ltcore.data.shards.writer import TAR_BLOCK, most_index_bytes, read_index
from ltcore.errors import DataError

Ints = npt.NDArray[np.int64]
T = TypeVar("T")
MAX_OPEN_SHARDS = 256
_IO_THREADS = 8
_RESTORE = "The shard is damaged: restore it or make the data set again."
_CHANGED = "It has changed since it was indexed, or is damaged: restore it, or run again to have it indexed anew."
_LOG = logging.getLogger("ltcore.data")


class _DamagedCopyError(DataError):
    """A row of this node's copy of a remote shard is damaged."""


class _OpenShard:
    """An open tar and the columns of its index; the file is closed when the last reader lets go of it.

    ``copy`` is the path of this node's copy where the tar is remote.
    """

    def __init__(
        self, descriptor: int, where: str, index: pa.Table, copy: Path | None, cached_bytes: int, *, indexed: bool
    ) -> None:
        self.where, self._copy, self.cached_bytes, self._indexed = where, copy, cached_bytes, indexed
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.keys: list[str] = index["key"].to_pylist()
        self._exts: list[str] = index["ext"].to_pylist()
        self._offsets: list[int] = index["offset"].to_pylist()
        self._sizes: list[int] = index["size"].to_pylist()
        self._crcs: list[int] = index["crc32"].to_pylist()

    def read(self, row: int) -> bytes:
        """Reads the encoded image of one row."""
        key, size = self.keys[row], self._sizes[row]
        try:
            block = os.pread(self.descriptor, TAR_BLOCK + size, self._offsets[row] - TAR_BLOCK)
        except OSError as error:
            raise self._damaged(
                key, f"cannot be read ({error.strerror})", "Check the disk, or restore the shard."
            ) from error
        if len(block) != TAR_BLOCK + size:
            problem = f"the file ends after {max(0, len(block) - TAR_BLOCK)} of {size} bytes"
        elif not self._indexed and (name := block[:100].split(b"\0")[0]) != (
            expected := f"{key}.{self._exts[row]}".encode()
        ):
            problem = f"found the member {name!r}, expected {expected!r}"
        elif (crc := zlib.crc32(data := block[TAR_BLOCK:])) != self._crcs[row]:
            problem = f"found crc32 {crc:08x}, expected {self._crcs[row]:08x}"
        else:
            return data
        raise self._damaged(key, problem, _CHANGED if self._indexed else _RESTORE)

    def _damaged(self, key: str, problem: str, remedy: str) -> DataError:
        what = f"{self.where}: sample {key!r}: {problem}"
        if self._copy is None:
            return DataError(f"{what}. {remedy}")
        return _DamagedCopyError(
            f"{what}, also in a copy that was just fetched, {self._copy}. Make the data set again, or check this node's disk."
        )


class ShardFiles:
    """Tars and indexes at a place, opened as rows of them are asked for. Thread-safe.

    Args:
        uri: folder or object-store prefix of the indexes, and of the tars that lie nowhere else.
        indexed: whether the tars are of others, who named their members as they liked.
        cache_bytes: most bytes of raw shards of remote data on this node's disk; no effect on local data.
    """

    def __init__(self, uri: str, *, indexed: bool, cache_bytes: int) -> None:
        self.uri, self.cache_bytes, self._indexed = uri, cache_bytes, indexed
        self._open: OrderedDict[tuple[str, str], _OpenShard] = (
            OrderedDict()
        )  # by tar and index: several may share a tar
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._remedy = _CHANGED if indexed else _RESTORE
        self._lock = threading.Lock()

    def read(self, shard: Shard, rows: Iterable[int]) -> list[bytes]:
        """Reads the encoded images of some rows of a shard. Raises DataError for anything short, stale or damaged.

        A damaged copy of a remote shard is fetched again, once.
        """
        rows, opened = list(rows), self._shard(shard)
        try:
            return [opened.read(row) for row in rows]
        except _DamagedCopyError:
            again = self._shard(shard, opened)
            return [again.read(row) for row in rows]

    def row_name(self, shard: Shard, row: int) -> str:
        """Returns file and key of a row, for messages."""
        opened = self._shard(shard)
        return f"{opened.where}: sample {opened.keys[row]!r}"

    def _index(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        where = storage.join(self.uri, shard.index_path)
        data = storage.read_bytes(where, most_bytes=most_index_bytes(shard))
        found = hashlib.sha256(data).hexdigest()
        if found != shard.index_sha256:
            raise DataError(
                f"{where}: sha256 {found[:12]}..., expected {shard.index_sha256[:12]}... by the manifest. "
                "The index is damaged or of another data set: restore it or make the data set again."
            )
        try:
            table, rows = read_index(data, shard, columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            text = " ".join(str(error).split())
            raise DataError(f"{where} is no index of a shard ({text}). Make the data set again.") from error
        if table is None or any(column.null_count for column in table.columns):
            raise DataError(
                f"{where}: {rows} samples, some of which may lack columns; expected {shard.count} whole ones by the "
                "manifest. Make the data set again."
            )
        return table

    def _shard(self, shard: Shard, damaged: _OpenShard | None = None) -> _OpenShard:
        """Returns the open shard, another one than ``damaged``, and keeps it among the most recently used."""
        name = (shard.path, shard.index_path)
        with self._lock:
            opened = self._open.get(name)
            if opened not in (None, damaged):
                self._open.move_to_end(name)
                return opened
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:  # of this shard only, so that others are opened (and downloaded) meanwhile
            with self._lock:
                opened = self._open.get(name)
            if opened in (None, damaged):
                where = storage.join(shard.base or self.uri, shard.path)
                index = self._index(shard)  # first: where it is damaged, no file stays open
                _check_places(index, shard, where)
                if storage.is_local(where):
                    copy, cached_bytes = None, 0
                    descriptor = open_stored(where, shard, self.cache_bytes, self._remedy)
                else:
                    copy, cached_bytes = cached_path(shard), shard.bytes
                    descriptor = fetch(where, shard, self.cache_bytes, damaged.descriptor if damaged else None)
                opened = _OpenShard(descriptor, where, index, copy, cached_bytes, indexed=self._indexed)
                with self._lock:
                    self._open[name] = opened
                    while len(self._open) > MAX_OPEN_SHARDS or self._held_bytes() > self.cache_bytes:
                        self._open.popitem(last=False)
            return opened

    def _held_bytes(self) -> int:
        """Returns the disk space that open files keep even where their names were evicted."""
        return sum({opened.where: opened.cached_bytes for opened in self._open.values()}.values())


class ShardStore(ShardFiles):
    """The samples of a data set. Thread-safe.

    Args:
        uri: folder or object-store prefix with ``manifest.json``.
        cache_bytes: most bytes of raw shards of remote data on this node's disk; no effect on local data.
    """

    def __init__(self, uri: str, cache_bytes: int = 20 * 2**30) -> None:
        self.manifest: Manifest = read_manifest(uri)
        super().__init__(uri, indexed=self.manifest.indexed, cache_bytes=cache_bytes)
        self._labels: dict[str, Labels] = {}

    def labels(self, split: str) -> Ints:
        """Returns [N] label of every sample; 8 bytes each, for as long as the array is held."""
        return _readonly(self._split_labels(split).labels_N.astype(np.int64))

    def attributes(self, split: str) -> Ints:
        """Returns [N] attribute of every sample, -1 where unknown; memory as for ``labels``."""
        return _readonly(self._split_labels(split).attributes_N.astype(np.int64))

    def labels_of(self, split: str, index_n: Ints) -> Ints:
        """Returns [n] label of these samples; of the others nothing comes into memory."""
        labels_n: Ints = self._split_labels(split).labels_N[index_n].astype(np.int64)
        return labels_n

    def keys(self, split: str) -> list[str]:
        """Returns the key of every sample."""
        with ThreadPoolExecutor(_IO_THREADS) as pool:
            tables = pool.map(lambda shard: self._index(shard, ["key"]), self.manifest.split(split).shards)
            return [key for table in tables for key in table["key"].to_pylist()]

    def keys_by_shard(self, split: str) -> Iterator[list[str]]:
        """Yields the keys of the samples in each shard; one shard's are in memory at a time."""
        for shard in self.manifest.split(split).shards:
            yield self._index(shard, ["key"])["key"].to_pylist()

    def where(self, split: str, index: int) -> str:
        """Returns file and key of a sample, for messages."""
        (number,), (row,) = self.find(split, np.array([index]))
        return self.row_name(self.manifest.split(split).shards[number], int(row))

    def find(self, split: str, index_n: Ints) -> tuple[Ints, Ints]:
        """Returns [n] the number of the shard of each sample, and [n] its row there."""
        first_S = self.manifest.split(split).first_index_S
        shard_n = np.searchsorted(first_S, index_n, side="right") - 1
        return shard_n, index_n - first_S[shard_n]

    def read_rows(self, split: str, index_n: Ints) -> list[bytes]:
        """Reads the encoded images of the samples, in the order asked for.

        Raises DataError for anything short, stale or damaged.
        """
        return read_by_shard(self, self.manifest.split(split).shards, *self.find(split, index_n))

    def _split_labels(self, split: str) -> Labels:
        with self._lock:
            if split not in self._labels:
                self._labels[split] = open_labels(self.uri, self.manifest, split, self.cache_bytes)
            return self._labels[split]


def read_by_shard(files: ShardFiles, shards: Sequence[Shard], shard_n: Ints, row_n: Ints) -> list[bytes]:
    """Reads the encoded images at these rows of these shards (numbers in ``shards``), shard by shard."""
    images: list[bytes] = [b""] * len(shard_n)
    for number in np.unique(shard_n).tolist():
        positions = np.flatnonzero(shard_n == number)
        for position, image in zip(
            positions.tolist(), files.read(shards[number], row_n[positions].tolist()), strict=True
        ):
            images[position] = image
    return images


def _readonly(values_N: Ints) -> Ints:
    values_N.flags.writeable = False
    return values_N


def _check_places(index: pa.Table, shard: Shard, where: str) -> None:
    """Refuses samples that lie outside the tar: reading one would take as much memory as it claims."""
    offset_n, size_n = (index[name].to_numpy() for name in ("offset", "size"))
    wrong = np.flatnonzero((offset_n < TAR_BLOCK) | (size_n < 0) | (size_n > shard.bytes - offset_n))
    if len(wrong):
        key, offset, size = (index[name][int(wrong[0])].as_py() for name in ("key", "offset", "size"))
        raise DataError(
            f"{where}: sample {key!r} has {size} bytes from byte {offset} on by its index, the tar {shard.bytes} by the "
            "manifest. Make the data set again."
        )
