"""Raw shards of remote data on this node's disk: each is downloaded once, checked, and shared by all processes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ltcore.data import storage
from ltcore.data.manifest import Shard
from ltcore.errors import DataError

_CHUNK_BYTES = 8 * 2**20


def cached_path(shard: Shard) -> Path:
    """Where a shard of remote data is on this node, or would be."""
    return storage.cache_root() / "shards" / f"{shard.sha256}.tar"


def fetch(uri: str, shard: Shard, cache_bytes: int) -> int:
    """A readable file descriptor of the shard at the remote ``uri``.

    The file's name is its sha256, so equal shards of several data sets are one file. The least recently used files go
    when ``cache_bytes`` would be exceeded; a descriptor that is open stays readable. DataError where the download
    differs from the manifest, is larger than ``cache_bytes``, or cannot be stored.
    """
    path = cached_path(shard)
    folder = path.parent
    try:
        with storage.locked(folder / f"{shard.sha256[:2]}.lock"):  # few locks, so that few files lie about
            if path.is_file() and path.stat().st_size == shard.bytes:
                os.utime(path)
                return os.open(path, os.O_RDONLY)
            _make_room(folder, shard, uri, cache_bytes)
            return _download(uri, shard, path)
    except OSError as error:
        raise DataError(f"{uri} cannot be fetched into {folder}: {error}. Check access and free space.") from error


def _make_room(folder: Path, shard: Shard, uri: str, cache_bytes: int) -> None:
    if shard.bytes > cache_bytes:
        raise DataError(f"{uri} has {shard.bytes} bytes, more than data.cache_bytes={cache_bytes}. Raise it.")
    with storage.locked(folder / "evict.lock"):
        kept = [(path.stat(), path) for path in folder.glob("*.tar")]
        total = sum(stat.st_size for stat, _ in kept)
        for stat, path in sorted(kept, key=lambda pair: pair[0].st_mtime):
            if total + shard.bytes <= cache_bytes:
                break
            path.unlink()
            total -= stat.st_size


def _download(uri: str, shard: Shard, path: Path) -> int:
    filesystem, source = storage.open_fs(uri)
    aside = path.with_suffix(".partial")
    digest, count = hashlib.sha256(), 0
    try:
        with aside.open("wb") as target, filesystem.open_input_stream(source) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                count += target.write(chunk)
        if digest.hexdigest() != shard.sha256:
            raise DataError(
                f"{uri}: {count} bytes with sha256 {digest.hexdigest()[:12]}..., expected {shard.bytes} bytes with "
                f"{shard.sha256[:12]}... by the manifest. The shard is damaged: restore it or make the data set again."
            )
        descriptor = os.open(aside, os.O_RDONLY)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return descriptor
