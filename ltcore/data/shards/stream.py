"""Reads a tar from its start to its end, on a disk or in an object store, and hashes it on the way."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import pyarrow as pa

from ltcore import storage
from ltcore.data.shards.tar import Stream
from ltcore.errors import DataError, LtcoreError

_CHUNK_BYTES = 2**20
_READ_AHEAD_BYTES = 8 * 2**20
"""Of one request to an object store, which would otherwise be asked for every header."""


class HashedStream:
    """A stream that knows the sha256 of what was read."""

    def __init__(self, raw: Stream) -> None:
        self._raw, self._sha256, self._count = raw, hashlib.sha256(), 0

    def read(self, size: int, /) -> bytes:
        """Reads as many bytes, fewer only at the end."""
        data = self._raw.read(size)
        self._sha256.update(data)
        self._count += len(data)
        return data

    def finish(self) -> tuple[int, str]:
        """Reads what is left, and returns the size and the sha256 of the whole."""
        while self.read(_CHUNK_BYTES):
            pass
        return self._count, self._sha256.hexdigest()


@contextlib.contextmanager
def open_hashed(uri: str) -> Iterator[HashedStream]:
    """Yields the content of the file. Raises DataError where it cannot be read."""
    try:
        with pa.BufferedInputStream(storage.open_file(uri), _READ_AHEAD_BYTES) as raw:
            yield HashedStream(raw)
    except LtcoreError:
        raise
    except storage.errors_of(uri) as error:
        raise DataError(f"{uri} cannot be read ({error}). Check that it exists, access, and the disk.") from error
