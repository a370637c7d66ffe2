"""Local shards that this node has compared with their manifest: each is hashed once, not at every start.

A shard that was found whole leaves an empty file, whose name is made of the expected sha256 and of what changes when the
shard does: path, inode, size and times. So a changed or exchanged shard is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ltcore import storage
from ltcore.data.shards.manifest import LabelTable, Shard
from ltcore.errors import DataError
from ltcore.hashing import hash64


def verify(descriptor: int, path: Path, shard: Shard | LabelTable, remedy: str) -> None:
    """Compares an open shard with the sha256 of its manifest, unless this node has done so since it changed.

    Of several processes one does it while the others wait. Raises DataError where it differs.
    """
    with _locked(shard):
        mark = _mark(descriptor, path, shard)
        if mark.exists():
            return
        with open(os.dup(descriptor), "rb") as stream:  # noqa: PTH123  # of a descriptor
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != shard.sha256:
            raise DataError(
                f"{path}: found sha256 {found[:12]}..., expected {shard.sha256[:12]}... by the manifest. {remedy}"
            )
        if mark == _mark(descriptor, path, shard):  # nobody wrote to it meanwhile
            with contextlib.suppress(OSError):  # a cache that cannot be written: the next process hashes again
                mark.touch()


@contextlib.contextmanager
def _locked(shard: Shard | LabelTable) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(storage.locked(_folder() / f"{shard.sha256[:2]}.lock"))
        yield


def _folder() -> Path:
    return storage.cache_root() / "verified"


def _mark(descriptor: int, path: Path, shard: Shard | LabelTable) -> Path:
    now = os.fstat(descriptor)
    state = hash64(str(path.absolute()), now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    return _folder() / f"{shard.sha256}-{state:016x}"
