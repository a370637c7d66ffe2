"""Files in the idx format of MNIST: arrays of bytes with their sizes in front, as they are or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltcore.errors import DataError
from ltcore.text import byte_size

MAX_BYTES = 2**30
"""Most bytes of an array, 23 times MNIST."""
_BYTES = 8
"""Code of unsigned bytes, the only type that is read."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Reads an array of unsigned bytes with so many dimensions from an idx file; '.gz' at the end of its name is unpacked.

    Raises DataError for another type or shape, and for a file that is shorter or longer than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(4 + 4 * dimensions)
            if len(head) != 4 + 4 * dimensions or head[:4] != bytes((0, 0, _BYTES, dimensions)):
                raise DataError(f"{path} is no idx file of bytes in {dimensions} dimensions. Give MNIST's own files.")
            sizes = [int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4)]
            count = math.prod(sizes)
            if not 0 < count <= MAX_BYTES:
                raise DataError(
                    f"{path} claims {count:,} values, expected 1 to {byte_size(MAX_BYTES)}. Fetch it again."
                )
            data = stream.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Fetch it again.") from error
    if len(data) != count:
        more = "more" if len(data) > count else f"{len(data):,}"
        raise DataError(f"{path} has {more} values, its header says {count:,}. Fetch it again.")
    return np.frombuffer(data, np.uint8).reshape(sizes)
