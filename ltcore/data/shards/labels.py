"""Label and attribute of every sample of a split in one file, so that nobody reads all indexes to know them.

The file is a NumPy array [1 or 2, N] of the smallest signed integers that hold both: labels, then attributes where the
data have any. It is mapped into memory, so all processes of a node share what the disk holds once.
"""

from __future__ import annotations

import hashlib
import io
import mmap
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ltcore import storage
from ltcore.data.shards.cache import cached_path, fetch, open_stored
from ltcore.data.shards.manifest import LabelTable, Manifest
from ltcore.errors import DataError

Ints = npt.NDArray[np.int64]
_AGAIN = "Make the data set again."
_DTYPES = ("|i1", "<i2", "<i4")
_CHUNK_ROWS = 2**20
"""Rows that are looked at in one go: what is computed of them is in memory, the table is not."""


@dataclass(frozen=True)
class Labels:
    """Label and attribute of the samples of a split, read-only, in few bytes each."""

    labels_N: npt.NDArray[Any]
    attributes_N: npt.NDArray[Any]
    """-1 where unknown."""


def label_array(labels_N: Ints, attributes_N: Ints, num_classes: int, num_attributes: int) -> npt.NDArray[Any]:
    """Returns the array [1 or 2, N] that is stored."""
    dtype = np.min_scalar_type(-max(num_classes, num_attributes)).newbyteorder("<")
    return np.array([labels_N, attributes_N] if num_attributes else [labels_N], dtype)


def open_labels(uri: str, manifest: Manifest, split: str, cache_bytes: int) -> Labels:
    """Maps the labels of a split at ``uri`` into memory; remote ones from this node's disk.

    Raises DataError where the file is not what the manifest describes.
    """
    table = manifest.split(split).labels
    where = storage.join(uri, table.path)
    data = _stored(where, table, cache_bytes)
    array = _array(where, data, 2 if manifest.attributes else 1, manifest.split(split).num_samples)
    labels_N = array[0]
    unknown_N = np.broadcast_to(np.int8(-1), labels_N.shape)
    attributes_N = array[1] if manifest.attributes else unknown_N
    _check_range(f"{where}: label", labels_N, range(len(manifest.classes)))
    _check_range(f"{where}: attribute", attributes_N, range(-1, len(manifest.attributes)))
    _check_counts(where, labels_N, manifest.class_counts[split])
    return Labels(labels_N, attributes_N)


def _stored(where: str, table: LabelTable, cache_bytes: int) -> mmap.mmap | bytes:
    """Maps the file that the manifest means. A damaged copy of a remote one is fetched again, once."""
    remedy = f"The labels are damaged: restore them. {_AGAIN}"
    with open(open_stored(where, table, cache_bytes, remedy), "rb") as file:  # noqa: PTH123  # of a descriptor
        if (found := _sha256(data := _mapped(file))) == table.sha256:
            return data
        expected = f"sha256 {found[:12]}..., expected {table.sha256[:12]}... by the manifest"
        if storage.is_local(where):
            raise DataError(
                f"{where}: {expected}. The labels are damaged or of another data set: restore them or make the data set again."
            )
        with open(fetch(where, table, cache_bytes, file.fileno()), "rb") as again:  # noqa: PTH123  # of a descriptor
            if _sha256(data := _mapped(again)) == table.sha256:
                return data
    raise DataError(
        f"{cached_path(table)}: {expected}, also after it was fetched from {where} again, where it is whole. Check this "
        "node's disk."
    )


def _sha256(data: mmap.mmap | bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _mapped(file: BinaryIO) -> mmap.mmap | bytes:
    try:
        # the file's own size, as it may have been cut off since it was looked at
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        return b""  # nothing can be mapped of an empty file


def _array(where: str, data: mmap.mmap | bytes, rows: int, count: int) -> npt.NDArray[Any]:
    """Returns the array in the file. It must begin as ours do, so nothing of what it says of itself is parsed."""
    for dtype in map(np.dtype, _DTYPES):
        head = _header((rows, count), dtype)
        if data[: len(head)] == head and len(data) == len(head) + rows * count * dtype.itemsize:
            array: npt.NDArray[Any] = np.frombuffer(data, dtype, offset=len(head)).reshape(rows, count)
            array.flags.writeable = False
            return array
    raise DataError(f"{where} is no table of labels, expected small integers {(rows, count)}. {_AGAIN}")


def _header(shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    """Returns how a file of NumPy's begins."""
    out = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, described)
    return out.getvalue()


def _check_range(what: str, values_N: npt.NDArray[Any], allowed: range) -> None:
    if len(values_N) and not allowed.start <= values_N.min() <= values_N.max() < allowed.stop:
        row = int(np.flatnonzero((values_N < allowed.start) | (values_N >= allowed.stop))[0])
        raise DataError(
            f"{what} of sample {row} is {values_N[row]}, expected {allowed.start}..{allowed.stop - 1}. {_AGAIN}"
        )


def _check_counts(where: str, labels_N: npt.NDArray[Any], expected: tuple[int, ...]) -> None:
    counts_C = np.zeros(len(expected), np.int64)
    for start in range(0, len(labels_N), _CHUNK_ROWS):
        counts_C += np.bincount(labels_N[start : start + _CHUNK_ROWS], minlength=len(expected))
    if tuple(counts_C.tolist()) != expected:
        raise DataError(
            f"{where} has {counts_C.tolist()} samples per class, the manifest says {list(expected)}. {_AGAIN}"
        )
