"""Whole decoded images of one split in one memory-mapped file per node: what crops of large images are cut from.

An image is kept with its aspect and a short side of at most ``side`` pixels (never enlarged), so that any box of the
original can be mapped to it. Images differ in size, so they lie one after another, and a table says where each begins.
An entry of the canvas cache (``ltcore.data.loading.canvas_cache``) otherwise: filled once, shared, under the same cap.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ltcore import storage
from ltcore.data.images.boxes import Size
from ltcore.data.images.decode import Pixels, decode_image, resample, size_of
from ltcore.data.loading.cache_entry import ARRAY, OnProgress, PartialEntry, in_threads, open_entry, write_at
from ltcore.data.loading.canvas_cache import canvas_bytes, entry_path
from ltcore.data.loading.checksums import RowChecks
from ltcore.data.loading.crops import CropDraws, Cropped, cut
from ltcore.data.loading.samples import BadSamples, decode_each
from ltcore.data.shards.reader import ShardStore
from ltcore.framing import OWN_WAY, Framing

_ROWS = 64
_TABLE = "table.i64"
_COLUMNS = 5
"""Offset in the file, height and width as kept, height and width of the original."""
TYPICAL_ASPECT = 4 / 3
GROWTH = 1.25


def typical_bytes(num_samples: int, side: int) -> int:
    """Returns about the size in bytes of a split of photographs."""
    return round(canvas_bytes(num_samples, side) * TYPICAL_ASPECT)


@dataclass(frozen=True)
class ImageCache:
    """An open entry, in use until it is closed or its process ends."""

    pixels_P: npt.NDArray[np.uint8]
    """Read-only memory map."""
    table_N5: npt.NDArray[np.int64]
    bad: dict[int, str]
    """Undecodable samples that hold a substitute -> what is wrong."""
    _file: BinaryIO
    _checks: RowChecks
    framing: Framing = OWN_WAY
    """Of what is cut out; images are kept with its interpolation."""

    def image(self, index: int) -> tuple[Pixels, Size]:
        """Returns the image as it is kept, [3, h, w], and the (height, width) of its original.

        One that is damaged on the disk is decoded anew.
        """
        offset, height, width, *original = self.table_N5[index].tolist()
        pixels = self.pixels_P[offset : offset + 3 * height * width]
        if self._checks.unread(np.array([index])):
            repaired = self._checks.repaired(index, pixels, offset)
            pixels = pixels if repaired is None else repaired
        return pixels.reshape(3, height, width), (original[0], original[1])

    def crops(self, index_n: npt.NDArray[np.int64], image_size: int, draws: CropDraws) -> Cropped:
        """Cuts one canvas per view of each sample."""
        return cut(map(self.image, index_n.tolist()), draws, len(index_n), image_size, self.framing)

    def close(self) -> None:
        """Releases the mark; the arrays stay valid as long as they are referred to."""
        self._file.close()


def images_path(store: ShardStore, split: str, side: int, interpolation: str | None = None) -> Path:
    """Returns the path that the entry of a split has, or would have."""
    squares = entry_path(
        store, split, side, Framing("bicubic" if interpolation == "bicubic" else None)
    )  # None is bilinear
    return squares.with_name(f"{squares.name}-whole")


def open_images(
    store: ShardStore,
    split: str,
    side: int,
    *,
    cache_bytes: int,
    max_bad_samples: int = 0,
    progress: OnProgress | None = None,
    framing: Framing = OWN_WAY,
) -> ImageCache:
    """Opens the decoded split; arguments, filling and errors as for ``open_canvases``."""
    interpolation = framing.interpolation
    path = images_path(store, split, side, interpolation)
    num_rows = store.manifest.split(split).num_samples

    def whole() -> bool:
        table_N5 = _read_table(path)
        return len(table_N5) == num_rows and (path / ARRAY).stat().st_size == _pixels(table_N5)

    def fill(filling: PartialEntry) -> None:
        _fill(filling, store, split, side, interpolation, progress)

    def decode(index: int) -> Pixels:
        bad = BadSamples(len(opened.bad), tell=False)  # a substitute's row holds the same substitute again
        (image_3HW,) = decode_each(store, split, np.array([index]), decode_image, bad)
        return _kept(image_3HW, side, interpolation).reshape(-1)

    opened = open_entry(path, store, split, whole, fill, cache_bytes=cache_bytes, max_bad_samples=max_bad_samples)
    table_N5 = _read_table(path)
    pixels_P = np.memmap(path / ARRAY, np.uint8, "r").view(np.ndarray) if num_rows else np.zeros(0, np.uint8)
    checks = RowChecks(path / ARRAY, opened.crc32_N, decode)
    return ImageCache(pixels_P, table_N5, opened.bad, opened.file, checks, framing)


def _read_table(path: Path) -> npt.NDArray[np.int64]:
    return np.frombuffer(storage.read_bytes(str(path / _TABLE)), np.int64).reshape(-1, _COLUMNS)


def _pixels(table_N5: npt.NDArray[np.int64]) -> int:
    return int((table_N5[:, 1] * table_N5[:, 2]).sum()) * 3


def kept_size(original: Size, side: int) -> Size:
    """Returns the (height, width) at which an image is kept."""
    short = min(original)
    return original if short <= side else (round(original[0] * side / short), round(original[1] * side / short))


def _kept(image_3HW: Pixels, side: int, interpolation: str | None) -> Pixels:
    original = size_of(image_3HW)
    return resample(image_3HW, (0, 0, *original), kept_size(original, side), interpolation)


def _fill(
    filling: PartialEntry,
    store: ShardStore,
    split: str,
    side: int,
    interpolation: str | None,
    progress: OnProgress | None,
) -> None:
    """Decodes all rows into the file, piece by piece in whatever order they come."""
    num_rows = store.manifest.split(split).num_samples
    table_N5 = np.zeros((num_rows, _COLUMNS), np.int64)
    claimed, used = typical_bytes(num_rows, side), 0
    filling.claim(claimed)
    lock = threading.Lock()

    def place(size: int) -> int:
        """Offset of a free piece of the file."""
        nonlocal claimed, used
        with lock:
            offset, used = used, used + size
            if used > claimed:
                claimed = max(used, round(claimed * GROWTH))
                filling.claim(claimed)
            return offset

    with (filling.folder / ARRAY).open("r+b", buffering=0) as stream:

        def fill(first: int) -> int:
            index_n = np.arange(first, min(first + _ROWS, num_rows))
            kept = []
            for image_3HW in decode_each(store, split, index_n, decode_image, filling.bad):
                image_3hw = _kept(image_3HW, side, interpolation)
                kept.append(image_3hw.reshape(-1))
                table_N5[first + len(kept) - 1, 1:] = *size_of(image_3hw), *size_of(image_3HW)
            sizes_n = np.array([pixels.size for pixels in kept])
            offset = place(int(sizes_n.sum()))
            table_N5[index_n, 0] = offset + np.cumsum(sizes_n) - sizes_n
            filling.note(first, kept)
            write_at(stream, offset, np.concatenate(kept))
            return len(index_n)

        in_threads(fill, range(0, num_rows, _ROWS), num_rows, progress)
        stream.truncate(used)
        os.fsync(stream.fileno())
    storage.write_bytes_atomic(str(filling.folder / _TABLE), table_N5.tobytes())
