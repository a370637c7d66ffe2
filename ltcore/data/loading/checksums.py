"""Checksums of rows in the node's cache, each compared when a process first reads the row."""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ltcore.errors import DataError

_LOG = logging.getLogger("ltcore.data")

Row = npt.NDArray[np.uint8]


def checksum(row: Row) -> int:
    """Returns the CRC-32 of a row's bytes."""
    return zlib.crc32(np.ascontiguousarray(row).data.cast("B"))


class RowChecks:
    """The checksums of one array in a file, and which of its rows were found whole.

    A row is compared once per process, so that a long training pays for one pass. A damaged row is decoded anew and put
    back. Thread-safe: at worst, two threads compare the same row.

    Args:
        file: the array.
        crc32_N: of every row, as filled.
        decode: makes a row from its image in the shards.
    """

    def __init__(self, file: Path, crc32_N: npt.NDArray[np.uint32], decode: Callable[[int], Row]) -> None:
        self._file, self._crc32_N, self._decode = file, crc32_N, decode
        self._whole_N = np.zeros(len(crc32_N), bool)

    def unread(self, index_n: npt.NDArray[np.int64]) -> list[int]:
        """Returns the positions in ``index_n`` of rows that have not been compared."""
        positions: list[int] = np.flatnonzero(~self._whole_N[index_n]).tolist()
        return positions

    def repaired(self, index: int, row: Row, offset: int) -> Row | None:
        """Returns what belongs in the place of a damaged row; None where the row is whole.

        ``offset`` is the row's place in the file. Raises DataError where its image does not give the same row any more.
        """
        if checksum(row) == self._crc32_N[index]:
            self._whole_N[index] = True
            return None
        again = self._decode(index)
        if checksum(again) != self._crc32_N[index]:
            raise DataError(
                f"{self._file}: row {index} is damaged, and its image gives another one now. Remove the folder and run again."
            )
        _LOG.warning("%s: row %d is damaged, and was decoded anew. Check the disk and the memory.", self._file, index)
        with (
            contextlib.suppress(OSError),
            self._file.open("r+b", buffering=0) as stream,
        ):  # else it is decoded each time
            stream.seek(offset)
            stream.write(np.ascontiguousarray(again).data.cast("B"))
        return again
