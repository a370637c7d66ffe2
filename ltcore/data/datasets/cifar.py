"""CIFAR-10 and CIFAR-100 through torchvision, long-tailed by a keyed or by the published selection."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore.data.config import DataConfig
from ltcore.data.datasets.dataset import Dataset
from ltcore.data.datasets.longtail import IntArray, carve, tail_name, tail_provenance
from ltcore.data.shards.source import Sample, Source
from ltcore.errors import DataError
from ltcore.storage import cache_root

# CIFAR-10's, for CIFAR-100 as well: so do LDAM, PaCo, DRO-LT, SADE and BoT
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
IMAGE_SIZE = 32
DOWNLOAD_TIMEOUT_S = 30.0


class Cifar(Dataset):
    """CIFAR-10 or CIFAR-100, whichever ``data.uri`` names."""

    def source(self) -> Source:
        return cifar(self.cfg.uri, self.cfg)


def cifar(name: str, cfg: DataConfig) -> Source:
    """Returns the source ``cifar10`` or ``cifar100``.

    The key of an image is ``<name>/<train|test>/<original index>``. The original archive is looked up below the cache
    folder and downloaded where it is not there.
    """
    train, test = load(name, train=True), load(name, train=False)
    classes = tuple(train.classes)
    labels_N = np.asarray(train.targets, np.int64)
    keys = [_key(f"{name}/train", i) for i in range(len(labels_N))]
    carved = carve(
        keys,
        labels_N,
        len(classes),
        imbalance_factor=cfg.imbalance_factor,
        subset=cfg.chosen_subset,
        seed=cfg.subset_seed,
        val_per_class=cfg.val_per_class,
    )
    test_labels_M = np.asarray(test.targets, np.int64)
    rows = {
        "train": CifarRows(f"{name}/train", train.data, labels_N, carved.train_n),
        "val": CifarRows(f"{name}/train", train.data, labels_N, carved.val_m),
        "test": CifarRows(f"{name}/test", test.data, test_labels_M, np.arange(len(test_labels_M))),
    }
    return Source(
        name=tail_name(name, cfg),
        classes=classes,
        splits={split: part for split, part in rows.items() if len(part)},
        image_size=IMAGE_SIZE,
        mean=MEAN,
        std=STD,
        shot_rule="count",
        provenance={
            "source": f"{name} (torchvision)",
            "test": "as published",
            **tail_provenance(cfg, carved, classes, val_given=False),
        },
    )


def load(name: str, *, train: bool) -> Any:
    """Loads one of torchvision's data sets, downloaded where it is missing: cifar10, cifar100 or mnist.

    It has ``data`` uint8 [N, 32, 32, 3], of mnist [N, 28, 28], ``targets`` and ``classes``.
    """
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "mnist": datasets.MNIST}[name]
    root = cache_root() / "torchvision"
    try:
        return kind(root, train=train, download=False)
    except RuntimeError:  # torchvision's word for missing or damaged
        return _download(kind, name, root, train)


def _download(kind: Any, name: str, root: Path, train: bool) -> Any:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torchvision sets none, and an unreachable host would wait for ever
    try:
        return kind(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} is not in {root} and cannot be downloaded ({error}). {_by_hand(kind)}.") from error
    finally:
        socket.setdefaulttimeout(before)


def _by_hand(kind: Any) -> str:
    """Says how the files get there otherwise."""
    if not hasattr(kind, "filename"):
        return (
            "Fetch MNIST's four files (train-images-idx3-ubyte.gz, ...) yourself and name their folder as data.images"
        )
    return f"Put {kind.filename} (the original archive for Python) there, or give data.uri a folder or zip of images"


def _key(prefix: str, index: int) -> str:
    return f"{prefix}/{index:05d}"


@dataclass(frozen=True)
class CifarRows:
    """The chosen images of one part, as PNG."""

    prefix: str
    images_NHW3: NDArray[np.uint8]
    labels_N: IntArray
    chosen_n: IntArray
    attributes_N: IntArray | None = None

    def __len__(self) -> int:
        return len(self.chosen_n)

    def __iter__(self) -> Iterator[Sample]:
        from PIL import Image

        for i in self.chosen_n.tolist():
            buffer = io.BytesIO()
            Image.fromarray(self.images_NHW3[i]).save(buffer, "PNG")
            attribute = -1 if self.attributes_N is None else int(self.attributes_N[i])
            key, label = _key(self.prefix, i), int(self.labels_N[i])
            yield Sample(key=key, image=buffer.getvalue(), ext="png", label=label, attribute=attribute)
