"""Reads samples by index: labels and attributes as arrays, encoded images by offset, every row checked.

A row is read together with its tar header, in one call, and must have the length, the member name and the crc32 that
the index says; the index must have the sha256 that the manifest says. So a short, stale or damaged file is an error
that names file and key, never a lost or exchanged sample. Names in tars of others follow no rule, so theirs are not compared.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import weakref
import zlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ltcore import storage
from ltcore.data.shards.cache import cached_path, fetch
from ltcore.data.shards.manifest import Manifest, Shard, read_manifest
from ltcore.data.shards.writer import TAR_BLOCK, read_index
from ltcore.errors import DataError

Ints = npt.NDArray[np.int64]
T = TypeVar("T")
MAX_OPEN_SHARDS = 256
_IO_THREADS = 8
_RESTORE = "The shard is damaged: restore it or make the data set again."
_CHANGED = "It has changed since it was indexed, or is damaged: restore it, or run again to have it indexed anew."
_LOG = logging.getLogger("ltcore.data")


@dataclass(frozen=True)
class _Tags:
    """What is kept in memory for all rows of a split."""

    labels_N: Ints
    attributes_N: Ints
    first_index_S: Ints


class _OpenShard:
    """An open tar and the columns of its index; the file is closed when the last reader lets go of it."""

    def __init__(
        self, descriptor: int, where: str, index: pa.Table, remedy: str, cached_bytes: int, *, indexed: bool
    ) -> None:
        self.where, self._remedy, self.cached_bytes, self._indexed = where, remedy, cached_bytes, indexed
        self._descriptor = descriptor
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
            block = os.pread(self._descriptor, TAR_BLOCK + size, self._offsets[row] - TAR_BLOCK)
        except OSError as error:
            raise DataError(
                f"{self.where}: sample {key!r} cannot be read ({error.strerror}). Check the disk, or restore the shard."
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
        raise DataError(f"{self.where}: sample {key!r}: {problem}. {self._remedy}")


class ShardStore:
    """The samples of a data set. Thread-safe.

    Args:
        uri: folder or object-store prefix with ``manifest.json``.
        cache_bytes: most bytes of raw shards of remote data on this node's disk; no effect on local data.
    """

    def __init__(self, uri: str, cache_bytes: int = 20 * 2**30) -> None:
        self.uri, self.cache_bytes = uri, cache_bytes
        self.manifest: Manifest = read_manifest(uri)
        self._tags: dict[str, _Tags] = {}
        self._open: OrderedDict[tuple[str, str], _OpenShard] = (
            OrderedDict()
        )  # by tar and index: several may share a tar
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._remedy = _CHANGED if self.manifest.indexed else _RESTORE
        self._lock = threading.Lock()

    def labels(self, split: str) -> Ints:
        """Returns [N] label of every sample."""
        return self._split_tags(split).labels_N

    def attributes(self, split: str) -> Ints:
        """Returns [N] attribute of every sample, -1 where unknown."""
        return self._split_tags(split).attributes_N

    def keys(self, split: str) -> list[str]:
        """Returns the key of every sample."""
        shards = self.manifest.split(split).shards
        return [key for shard in shards for key in self._index(shard, ["key"])["key"].to_pylist()]

    def where(self, split: str, index: int) -> str:
        """Returns file and key of a sample, for messages."""
        shard, row = self._find(split, index)
        opened = self._shard(shard)
        return f"{opened.where}: sample {opened.keys[row]!r}"

    def read_rows(self, split: str, index_n: Ints) -> list[bytes]:
        """Reads the encoded images of the samples, in the order asked for.

        Raises DataError for anything short, stale or damaged.
        """
        rows: list[bytes] = [b""] * len(index_n)
        first_S = self._split_tags(split).first_index_S
        shard_n = np.searchsorted(first_S, index_n, side="right") - 1
        shards = self.manifest.split(split).shards
        for number in np.unique(shard_n).tolist():
            opened = self._shard(shards[number])
            for position in np.flatnonzero(shard_n == number).tolist():
                rows[position] = opened.read(int(index_n[position] - first_S[number]))
        return rows

    def _find(self, split: str, index: int) -> tuple[Shard, int]:
        first_S = self._split_tags(split).first_index_S
        number = int(np.searchsorted(first_S, index, side="right")) - 1
        return self.manifest.split(split).shards[number], index - int(first_S[number])

    def _split_tags(self, split: str) -> _Tags:
        with self._lock:
            if split not in self._tags:
                self._tags[split] = self._load_tags(split)
            return self._tags[split]

    def _load_tags(self, split: str) -> _Tags:
        shards = self.manifest.split(split).shards
        with ThreadPoolExecutor(_IO_THREADS) as pool:
            tables = list(pool.map(lambda shard: self._index(shard, ["label", "attribute"]), shards))
        columns = (
            np.concatenate([np.zeros(0, np.int64), *(table[name].to_numpy() for table in tables)])
            for name in ("label", "attribute")
        )
        labels_N, attributes_N = columns
        self._check_range(split, "label", labels_N, range(len(self.manifest.classes)))
        self._check_range(split, "attribute", attributes_N, range(-1, len(self.manifest.attributes)))
        counts = np.bincount(labels_N, minlength=len(self.manifest.classes))
        if tuple(counts.tolist()) != self.manifest.class_counts[split]:
            raise DataError(
                f"{self.uri}: the indexes of {split} have {counts.tolist()} samples per class, "
                f"the manifest says {list(self.manifest.class_counts[split])}. Make the data set again."
            )
        labels_N.flags.writeable = attributes_N.flags.writeable = False
        return _Tags(labels_N, attributes_N, np.array([shard.first_index for shard in shards], np.int64))

    def _check_range(self, split: str, column: str, values_N: Ints, allowed: range) -> None:
        wrong = np.flatnonzero((values_N < allowed.start) | (values_N >= allowed.stop))
        if len(wrong):
            raise DataError(
                f"{self.uri}: sample {self.keys(split)[wrong[0]]!r} of {split} has {column} {values_N[wrong[0]]}, expected "
                f"{allowed.start}..{allowed.stop - 1}. Make the data set again."
            )

    def _index(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        where = storage.join(self.uri, shard.index_path)
        data = storage.read_bytes(where)
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

    def _shard(self, shard: Shard) -> _OpenShard:
        """Returns the open shard, and keeps it among the most recently used."""
        name = (shard.path, shard.index_path)
        with self._lock:
            opened = self._open.get(name)
            if opened is not None:
                self._open.move_to_end(name)
                return opened
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:  # of this shard only, so that others are opened (and downloaded) meanwhile
            with self._lock:
                opened = self._open.get(name)
            if opened is None:
                where = storage.join(shard.base or self.uri, shard.path)
                index, remedy = self._index(shard), self._remedy  # first: where it is damaged, no file stays open
                _check_places(index, shard, where)
                cached_bytes = 0
                if not storage.is_local(where):  # it was whole when it was fetched
                    cached_bytes = shard.bytes
                    remedy = f"This node's copy, {cached_path(shard)}, is damaged: remove it and run again."
                descriptor = self._open_tar(shard, where)
                opened = _OpenShard(descriptor, where, index, remedy, cached_bytes, indexed=self.manifest.indexed)
                with self._lock:
                    self._open[name] = opened
                    while len(self._open) > MAX_OPEN_SHARDS or self._held_bytes() > self.cache_bytes:
                        self._open.popitem(last=False)
            return opened

    def _held_bytes(self) -> int:
        """Returns the disk space that open files keep even where their names were evicted."""
        return sum({opened.where: opened.cached_bytes for opened in self._open.values()}.values())

    def _open_tar(self, shard: Shard, where: str) -> int:
        if not storage.is_local(where):
            return fetch(where, shard, self.cache_bytes)
        path = storage.local_path(where)
        try:
            found = path.stat()
            if not storage.is_plain(found):
                raise DataError(f"{where} is no plain file. {self._remedy}")
            if found.st_size != shard.bytes:
                raise DataError(
                    f"{where}: found {found.st_size} bytes, expected {shard.bytes} by the manifest. {self._remedy}"
                )
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{where} cannot be opened: {error.strerror}. Restore it or its permissions.") from error


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
