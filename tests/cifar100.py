"""A small CIFAR-100: all its classes, few images of few pixels, as torchvision gives it and as a zip of folders."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
from PIL import Image

from ltcore.data.datasets.cifar100_glt import FINE

FINE_TRAIN, FINE_TEST, SIDE = 10, 4, 6


def small_cifar100():
    """Returns part -> ``data``, ``targets`` and ``classes``, in an order that is not that of the classes."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, per_class in (("train", FINE_TRAIN), ("test", FINE_TEST)):
        targets = rng.permutation(np.repeat(np.arange(100), per_class))
        data = rng.integers(0, 256, (len(targets), SIDE, SIDE, 3), dtype=np.uint8)
        parts[part] = SimpleNamespace(data=data, targets=targets.tolist(), classes=list(FINE))
    return parts


def zip_of(parts, path, renamed=None):
    """Writes the images into ``<part>/<class>/``; ``renamed`` gives classes other names, or None to leave them out."""
    renamed = renamed or {}
    with zipfile.ZipFile(path, "w") as out:
        for part, found in parts.items():
            for number, (image, target) in enumerate(zip(found.data, found.targets, strict=True)):
                name = renamed.get(FINE[target], FINE[target])
                if name is not None:
                    buffer = io.BytesIO()
                    Image.fromarray(image).save(buffer, "PNG")
                    out.writestr(f"{part}/{name}/{number:05d}.png", buffer.getvalue())
    return str(path)
