"""Decoded canvases of one split in one memory-mapped array per node, shared by all processes through the page cache.

An entry is a folder ``canvases/<manifest hash>-<split>-<image size and framing>/`` with the raw uint8 array and
``meta.json``. It is filled aside under a lock, so that of several processes one does the work, and renamed when it is
complete: a killed fill leaves a ``.partial`` folder that is never read and that the next fill removes.
``ltcore.data.loading.original_cache`` keeps whole images in entries beside these, under the same cap. Each row has a
checksum (``ltcore.data.loading.checksums``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ltcore import storage
from ltcore.data.images.decode import DECODE_VERSION
from ltcore.data.loading.cache_entry import ARRAY, OnProgress, PartialEntry, in_threads, open_entry, write_at
from ltcore.data.loading.checksums import RowChecks
from ltcore.data.loading.samples import BadSamples, decode_rows
from ltcore.data.shards.reader import ShardStore
from ltcore.framing import OWN_WAY, Framing

_ROWS = 256


def canvas_bytes(num_samples: int, image_size: int) -> int:
    """Returns the size of the decoded split in bytes."""
    return num_samples * 3 * image_size * image_size


@dataclass(frozen=True)
class CanvasCache:
    """An open entry. It is marked as in use, and so not evicted, until it is closed or its process ends."""

    canvases_N3SS: npt.NDArray[np.uint8]
    """Read-only memory map, as it lies on the disk."""
    bad: dict[int, str]
    """Undecodable samples that hold a substitute -> what is wrong."""
    _file: BinaryIO
    _checks: RowChecks

    def take(self, index_n: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Returns [n, 3, S, S] canvases; one that is damaged on the disk is decoded anew."""
        taken_n3SS = np.take(self.canvases_N3SS, index_n, axis=0)
        for position in self._checks.unread(index_n):
            index, canvas_3SS = int(index_n[position]), taken_n3SS[position]
            repaired_3SS = self._checks.repaired(index, canvas_3SS, index * canvas_3SS.size)
            if repaired_3SS is not None:
                taken_n3SS[position] = repaired_3SS
        return taken_n3SS

    def close(self) -> None:
        """Releases the mark; the array stays valid as long as it is referred to."""
        self._file.close()


def entry_path(store: ShardStore, split: str, image_size: int, framing: Framing = OWN_WAY) -> Path:
    """Returns the path that the entry of a split has, or would have."""
    name = f"{store.manifest.hash[:20]}-{split}-{image_size}{framing.of_cache}-v{DECODE_VERSION}"
    return storage.cache_root() / "canvases" / name


def open_canvases(
    store: ShardStore,
    split: str,
    image_size: int,
    *,
    cache_bytes: int,
    max_bad_samples: int = 0,
    progress: OnProgress | None = None,
    framing: Framing = OWN_WAY,
) -> CanvasCache:
    """Opens the decoded split; fills the entry first if this node has none.

    Other processes wait while it is filled.

    Args:
        cache_bytes: most bytes of all entries together; the least recently used that nobody has open go first.
        max_bad_samples: how many undecodable training images are tolerated, see ``decode_rows``.
        progress: called with (rows done, rows) while the entry is filled, from the calling thread.
        framing: how whole images are brought to canvases.

    Raises NoRoomError where the entry does not fit the cap or the disk, DataError where it cannot be written or has too
    many bad samples.
    """
    shape = (store.manifest.split(split).num_samples, 3, image_size, image_size)
    size = int(np.prod(shape))

    def fill(filling: PartialEntry) -> None:
        filling.claim(size)
        _fill(filling, store, split, shape, framing, progress)

    path = entry_path(store, split, image_size, framing)

    def decode(index: int) -> npt.NDArray[np.uint8]:
        bad = BadSamples(len(opened.bad), tell=False)  # a substitute's row holds the same substitute again
        canvas_3SS: npt.NDArray[np.uint8] = decode_rows(store, split, np.array([index]), image_size, bad, framing)[0]
        return canvas_3SS

    opened = open_entry(
        path,
        store,
        split,
        lambda: (path / ARRAY).stat().st_size == size,
        fill,
        cache_bytes=cache_bytes,
        max_bad_samples=max_bad_samples,
    )
    empty = not size  # an empty file cannot be mapped
    canvases_N3SS = np.zeros(shape, np.uint8) if empty else np.memmap(path / ARRAY, np.uint8, "r", shape=shape)
    checks = RowChecks(path / ARRAY, opened.crc32_N, decode)
    return CanvasCache(canvases_N3SS.view(np.ndarray), opened.bad, opened.file, checks)


def _fill(
    filling: PartialEntry,
    store: ShardStore,
    split: str,
    shape: tuple[int, ...],
    framing: Framing,
    progress: OnProgress | None,
) -> None:
    """Decodes all rows into the file by plain writes.

    A full disk under a memory map is a signal, not an error.
    """
    num_rows, image_size = shape[0], shape[-1]
    with (filling.folder / ARRAY).open("r+b", buffering=0) as stream:

        def fill(first: int) -> int:
            index_n = np.arange(first, min(first + _ROWS, num_rows))
            canvases = decode_rows(store, split, index_n, image_size, filling.bad, framing)
            filling.note(first, canvases)
            write_at(stream, first * canvas_bytes(1, image_size), canvases)
            return len(index_n)

        in_threads(fill, range(0, num_rows, _ROWS), num_rows, progress)
        os.fsync(stream.fileno())
