"""Few digits in the form of MNIST: its four files, or folders of images."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TRAIN, TEST = 20, 4
"""Images of each digit."""


def digits(part: str, each: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Random images in the middle of black ones, [N, 28, 28], and their labels."""
    rng = np.random.default_rng(len(part))
    images = np.zeros((10 * each, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = rng.integers(0, 256, (10 * each, 20, 20), np.uint8)
    return images, np.tile(np.arange(10, dtype=np.uint8), each)


def idx(array: NDArray[np.uint8]) -> bytes:
    head = bytes((0, 0, 8, array.ndim))
    return head + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_idx(folder: Path, *, packed: bool = False, each: int = TRAIN) -> str:
    """Writes the four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", each), ("t10k", TEST)):
        for kind, array in zip(("images-idx3-ubyte", "labels-idx1-ubyte"), digits(stem, count), strict=True):
            data = idx(array)
            (folder / f"{stem}-{kind}{'.gz' * packed}").write_bytes(gzip.compress(data) if packed else data)
    return str(folder)


def write_images(folder: Path) -> str:
    """Writes ``train/<digit>/`` and ``test/<digit>/``."""
    for part, stem, count in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        for number, (image, label) in enumerate(zip(*digits(stem, count), strict=True)):
            file = folder / part / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return str(folder)
