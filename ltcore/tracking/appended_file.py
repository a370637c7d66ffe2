"""A log file that grows by whole records, also where its disk fails for a while."""

from __future__ import annotations

import os
from pathlib import Path

from ltcore.retry import retrying
from ltcore.storage import append


class AppendedFile:
    """A file that is open for appending, made where it is not there. What is appended is with the system at once."""

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, str(path.parent)
        retrying(self._place, lambda: path.parent.mkdir(parents=True, exist_ok=True))
        self._file = retrying(self._place, lambda: path.open("ab", buffering=0))

    def is_there(self) -> bool:
        """Tells whether its name is still that of this file, which somebody may have removed."""

        def same() -> bool:
            try:
                return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
            except FileNotFoundError:
                return False

        return retrying(self._place, same)

    def append(self, record: bytes) -> None:
        """Writes all of ``record``; waits while the disk is full or does not answer."""
        append(self._file, record, self._place)

    def sync(self) -> None:
        """Makes what was appended survive a power cut."""
        retrying(self._place, lambda: os.fsync(self._file.fileno()))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
