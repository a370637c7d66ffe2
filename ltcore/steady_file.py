"""A file in a store that is read on where the store fails in the middle: opened again, at the byte that was reached."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pyarrow as pa

from ltcore.errors import DataError
from ltcore.retry import ShortError
from ltcore.stores import ACCESS, asked


class SteadyFile:
    """A file for ``pyarrow.PythonFile``, each read of which outlives a disturbance of the store.

    ``reopen`` opens the file from its start, without any patience. It must be the same file each time, by size and by
    the ETag that some stores give. Where a server does not tell the size, it sends files from their start on alone;
    such a one is read once, as it comes.
    """

    def __init__(self, uri: str, opened: pa.NativeFile, reopen: Callable[[], pa.NativeFile]) -> None:
        self._uri, self._reopen, self._at, self.closed = uri, reopen, 0, False
        self._file: pa.NativeFile | None = opened
        self._version = self._size, _ = _version(opened)

    def read(self, count: int, /) -> bytes:
        """Reads as many bytes, fewer only at the end."""
        if self._size is None:
            assert self._file is not None, "opened once"
            data = bytes(self._file.read(count))
        else:
            count = max(0, min(count, self._size - self._at))
            data = asked(self._uri, "read", ACCESS, lambda: self._part(count))
        self._at += len(data)
        return data

    def _part(self, count: int) -> bytes:
        file, self._file = self._file or self._again(), None
        data = bytes(file.read_at(count, self._at))
        if len(data) < count:
            raise ShortError(f"{len(data)} bytes came of {count}")
        self._file = file  # which is not read again where it failed
        return data

    def _again(self) -> pa.NativeFile:
        file = self._reopen()
        if (found := _version(file)) != self._version:
            raise DataError(
                f"{self._uri} was replaced while it was read: it has {found[0]} bytes, and had {self._size} when it was "
                "opened. Run again."
            )
        return file

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves to ``offset`` bytes from the start (0), from here (1) or from the end (2)."""
        if self._size is None:
            raise OSError("the server does not send a part of a file, only the whole")
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self.closed = True
        if self._file is not None:
            self._file.close()


def _version(file: pa.NativeFile) -> tuple[int | None, bytes | None]:
    """Returns the size, None where the server does not tell it, and what changes with the content, None likewise."""
    with contextlib.suppress(ValueError, TypeError):  # of fsspec, where it can only be read from the start on
        return file.size(), file.metadata().get("ETag")
    return None, None
