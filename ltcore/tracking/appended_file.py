"""A log file that grows by whole records, also where its disk fails for a while."""

from __future__ import annotations

import os
from pathlib import Path

from ltcore.retry import retrying


class AppendedFile:
    """A file that is open for appending, made where it is not there. What is appended is with the system at once."""

    def __init__(self, path: Path) -> None:
        self._place = str(path.parent)
        retrying(self._place, lambda: path.parent.mkdir(parents=True, exist_ok=True))
        self._file = retrying(self._place, lambda: path.open("ab", buffering=0))

    def append(self, record: bytes) -> None:
        """Writes all of ``record``; waits while the disk is full or does not answer."""
        end = os.fstat(self._file.fileno()).st_size

        def write() -> None:
            os.ftruncate(self._file.fileno(), end)  # what a full disk took of the record
            left = record
            while left:
                left = left[self._file.write(left) or 0 :]

        retrying(self._place, write)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
