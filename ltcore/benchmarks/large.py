"""Large JPEGs: the threaded loader against the decoding limit of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ltcore.benchmarks import datasets as images
from ltcore.benchmarks.harness import Aim, Rung, Section, Work, interleave
from ltcore.benchmarks.ladder import Epochs
from ltcore.benchmarks.machine import on_cpus
from ltcore.benchmarks.options import Options
from ltcore.data.config import DataConfig
from ltcore.data.loading.loader import ThreadedLoader
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import ConfigError
from ltcore.text import counted
from ltcore.training.hardware import allocated_cpus

CANVAS_PX = 224
ROWS = 4096
"""Images of a round: the given ones, repeated."""
BATCH = 64


def large(options: Options) -> list[Section]:
    """Measures the threaded loader on real JPEGs."""
    if options.data is None:
        raise ConfigError("large measures real JPEGs: name a zip or folder of them with --data.")
    with on_cpus(allocated_cpus()) as cpus:
        uri = images.unsorted(options.data)
        image_size, rows, size = (32, 16, 8) if options.quick else (CANVAS_PX, ROWS, BATCH)
        num_images = read_manifest(uri).split("train").num_samples
        cfg = DataConfig(uri=uri, image_size=image_size, loader="threads")
        loader = ThreadedLoader(cfg, uri, batch_size=min(size, num_images), seed=0)
        loader.copies_N = np.full(num_images, -(-rows // num_images), np.int64)
        encoded = jpegs(loader, min(num_images, rows))
        section = Section("large images", "images/s")
        section.notes.append(
            f"{counted(cpus, 'CPU')} and threads for each side; {num_images} JPEGs, repeated, to {image_size} px"
        )
        sides: dict[str, Work] = {
            "threaded loader": Epochs(loader),
            "decode limit": limit(encoded, image_size, rows, max(2, cpus)),
        }
        section.measurements += interleave(sides, options.turns)
    section.rungs.append(Rung("threaded loader", "decode limit", Aim(">=", 0.9)))
    return [section]


def jpegs(loader: ThreadedLoader, count: int) -> list[Tensor]:
    """Returns the encoded images in memory. Raises ConfigError where one is not a JPEG."""
    rows = loader.store.read_rows("train", np.arange(count))
    if not all(row.startswith(b"\xff\xd8") for row in rows):
        raise ConfigError(f"large measures real JPEGs; {loader.uri} contains other images.")
    return [torch.frombuffer(bytearray(row), dtype=torch.uint8) for row in rows]


def limit(encoded: Sequence[Tensor], image_size: int, rows: int, threads: int) -> Work:
    """Measures decoding and nothing else: bytes in memory, no order, no checks, no batches."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(number: int) -> None:
        image_3HW = decode_jpeg(encoded[number % len(encoded)], ImageReadMode.RGB)
        to_canvas(image_3HW, image_size)

    def work() -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(1 for _ in pool.map(decode, range(rows)))

    return work


def to_canvas(image_3HW: Tensor, image_size: int) -> Tensor:
    """Returns the largest centered square, resized as in ``ltcore.data.images.decode``."""
    height, width = image_3HW.shape[1:]
    if (height, width) == (image_size, image_size):
        return image_3HW
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image_3HW[None, :, top : top + side, left : left + side]
    return F.interpolate(square, size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False)[0]
