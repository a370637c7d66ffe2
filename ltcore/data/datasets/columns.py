"""Sequences held as columns: a million objects of Python take ten times the memory of their text and numbers."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

T = TypeVar("T")
Positions = NDArray[np.integer]
CHUNK_BYTES = 2**16
CHUNK = 2**12
"""Strings of a column that are objects of Python at once, while it is read through."""


class Columns(Sequence[T]):
    """A sequence whose elements are made when they are asked for."""

    @abstractmethod
    def at(self, position: int) -> T:
        """Returns the element at a position from 0."""

    @abstractmethod
    def take(self, positions_n: Positions) -> Self:
        """Returns the elements at these positions, in their order."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> T | Self:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self.at(range(len(self))[index])


class Texts(Columns[str]):
    """Strings of any kind, names of files that are no text included: surrogates pass, and bytes sort as the strings do."""

    def __init__(self, column: pa.LargeBinaryArray) -> None:
        self._column = column

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Reads the strings one by one."""
        growing = GrowingTexts()
        for text in texts:
            growing.append(text)
        return growing.whole()

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """Returns the strings of all parts, one after the other."""
        return cls(pa.concat_arrays([part._column for part in parts]))

    def __len__(self) -> int:
        return len(self._column)

    def at(self, position: int) -> str:
        data: bytes = self._column[position].as_py()
        return data.decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), CHUNK):
            yield from (
                data.decode("utf-8", "surrogatepass") for data in self._column[first : first + CHUNK].to_pylist()
            )

    def take(self, positions_n: Positions) -> Texts:
        return Texts(self._column.take(pa.array(positions_n)))

    def where(self, chosen_N: NDArray[np.bool_]) -> Texts:
        """Returns the strings that are chosen; all of them share their memory with these."""
        return self if chosen_N.all() else self.take(np.flatnonzero(chosen_N))

    def order(self) -> Positions:
        """Returns [N] positions that sort the strings as ``sorted`` does; equal ones stay in their order."""
        found_N: Positions = pc.sort_indices(self._column).to_numpy()
        return found_N

    def repeated(self) -> NDArray[np.bool_]:
        """Returns [N] whether the string is there more than once."""
        order_N = self.order()
        ordered = self._column.take(pa.array(order_N))
        same = pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
        found_N = np.zeros(len(self), np.bool_)
        found_N[order_N[1:][same]] = found_N[order_N[:-1][same]] = True
        return found_N


class GrowingTexts:
    """Strings that come one by one, in memory of Arrow: what is freed there can be given back to the system."""

    def __init__(self) -> None:
        self._data, self._ends = pa.BufferOutputStream(), pa.BufferOutputStream()
        self._next, self._next_ends = bytearray(), array("q", (0,))
        self._count = self._bytes = 0

    def append(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._next += data
        self._bytes += len(data)
        self._next_ends.append(self._bytes)
        self._count += 1
        if len(self._next) >= CHUNK_BYTES:
            self._flush()

    def whole(self) -> Texts:
        """Returns all of them; nothing can be appended then."""
        self._flush()
        buffers = [None, self._ends.getvalue(), self._data.getvalue()]
        return Texts(pa.Array.from_buffers(pa.large_binary(), self._count, buffers))

    def _flush(self) -> None:
        self._data.write(bytes(self._next))
        self._ends.write(self._next_ends.tobytes())
        self._next.clear()
        del self._next_ends[:]
