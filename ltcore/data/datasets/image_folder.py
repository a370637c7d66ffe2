"""Images in a directory or zip, class by class, or named by list files; original bytes are passed through untouched."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.folder_layout import Entry, Layout, read_folders, read_lists
from ltcore.data.datasets.image_root import Readable, Root, open_root
from ltcore.data.datasets.longtail import carve, keyed_order, tail_name, tail_provenance
from ltcore.data.images.decode import decode_canvas, decode_image, size_of
from ltcore.data.shards.source import EXTENSIONS, Sample, Source, safe_key
from ltcore.errors import ConfigError, DataError

TEST_SHARE = 5
"""A root without a test split gives 1/5 of each class, rounded down, to the test."""
LARGEST_IMAGE_SIZE = 224
PROBED = 512
"""Training images, chosen by hash, from which image size, mean and std are measured."""
CHUNK, CHUNK_BYTES = 256, 64 * 2**20
"""Images, and about how many bytes of them, that are in memory at once."""
ALIASES = {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg", "tiff": "tif", "pgm": "ppm"}


class ImageFolder(Dataset):
    """The images of a local directory or zip, by class folders or by list files."""

    by_path = True

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        if cfg.imbalance_factor is not None and cfg.subset == "legacy":
            raise ConfigError(
                "data.subset='legacy' needs the original order of a published data set, which a directory or zip does not "
                "keep; use data.subset='keyed', which has the same class counts."
            )
        path = storage.local_path(cfg.uri).absolute()
        self.cfg, self.root = cfg, open_root(str(path))
        self.layout = read_lists(self.root, lists) if lists else read_folders(self.root, needs_train=needs_train)
        self.name, self.identity = path.stem, self.root.fingerprint

    def source(self) -> Source:
        return image_folder(self.root, self.layout, self.cfg)


def image_folder(root: Root, layout: Layout, cfg: DataConfig) -> Source:
    """Returns the source for the images below ``root``.

    Where ``layout`` has no test split (and no val split), a fifth of each class becomes one; where it has no val split,
    :func:`ltcore.data.datasets.longtail.carve` makes one. The split of an image depends only on its path and the seed.
    Data without a train split, which are for evaluation, stay as they are.
    """
    stem = Path(root.where).resolve().stem
    splits = {split: _items(root, entries) for split, entries in layout.splits.items()}
    if "train" in splits:
        splits, chosen = _carve_splits(splits, layout.classes, cfg)
        name, probed = tail_name(stem, cfg), splits["train"]
    else:
        chosen = {"test": "as given", "train": "none: for evaluation"}
        name, probed = stem, list(itertools.chain(*splits.values()))
    image_size, mean, std = _probe(root, probed, cfg.subset_seed)
    return Source(
        name=name,
        classes=layout.classes,
        splits={split: _Rows(root, items, image_size) for split, items in splits.items()},
        image_size=image_size,
        mean=mean,
        std=std,
        shot_rule="count",
        provenance={"source": f"images of {stem}", **chosen},
    )


def _carve_splits(
    given: Mapping[str, list[_Item]], classes: Sequence[str], cfg: DataConfig
) -> tuple[dict[str, list[_Item]], dict[str, Any]]:
    """Returns the splits with those that the data did not bring, and how they were chosen, for the provenance."""
    splits, train = dict(given), given["train"]
    has_val, test_made = "val" in given, given.keys() == {"train"}
    if test_made:
        train, splits["test"] = _hold_out(train, len(classes), cfg.subset_seed)
    carved = carve(
        [item.key for item in train],
        np.array([item.label for item in train], np.int64),
        len(classes),
        imbalance_factor=cfg.imbalance_factor,
        seed=cfg.subset_seed,
        val_per_class=0 if has_val else cfg.val_per_class,
    )
    splits["train"] = [train[i] for i in carved.train_n]
    if len(carved.val_m):
        splits["val"] = [train[i] for i in carved.val_m]
    has_test = any(split.startswith("test") for split in given)
    made = f"1/{TEST_SHARE} of each class by keyed hash" if test_made else "as given" if has_test else "none"
    chosen = {"test": made, **tail_provenance(cfg, carved, classes, val_given=has_val)}
    return {split: items for split, items in splits.items() if items}, chosen


@dataclass(frozen=True, slots=True)
class _Item:
    path: str
    key: str
    ext: str
    label: int


def _items(root: Root, entries: Sequence[Entry]) -> list[_Item]:
    """Returns key and type of every image.

    The key is the path without its extension, unless two files differ in nothing else.
    """
    stems = Counter(PurePosixPath(entry.path).with_suffix("") for entry in entries)
    items = []
    for entry in entries:
        pure = PurePosixPath(entry.path)
        suffix = pure.suffix.lower().removeprefix(".")
        ext = ALIASES.get(suffix, suffix)
        if ext not in EXTENSIONS:
            raise DataError(f"{root.where}: {entry.path} is no image; known are {', '.join(EXTENSIONS)}. Remove it.")
        stem = pure.with_suffix("")
        items.append(_Item(entry.path, safe_key(entry.path if stems[stem] > 1 else str(stem)), ext, entry.label))
    return items


def _hold_out(items: Sequence[_Item], num_classes: int, seed: int) -> tuple[list[_Item], list[_Item]]:
    """Returns the items without the test share of each class, and that share."""
    keys, labels_N = [item.key for item in items], np.array([item.label for item in items])
    test: set[int] = set()
    for c in range(num_classes):
        members = keyed_order(keys, np.flatnonzero(labels_N == c), seed, "test")
        test.update(members[: len(members) // TEST_SHARE].tolist())
    return [x for i, x in enumerate(items) if i not in test], [items[i] for i in sorted(test)]


@dataclass(frozen=True)
class _Rows:
    """One split; every image is decoded once on its way, so that a broken one is named now and not in training."""

    root: Root
    items: Sequence[_Item]
    image_size: int

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        with ThreadPoolExecutor() as pool:
            for chunk in self._chunks():
                checks = pool.map(self._check, *zip(*chunk, strict=True))
                for (item, image), _ in zip(chunk, checks, strict=True):
                    yield Sample(key=item.key, image=image, ext=item.ext, label=item.label)

    def _chunks(self) -> Iterator[list[tuple[_Item, bytes]]]:
        """Yields the items with their bytes, as many at a time as may be in memory together."""
        chunk, held = list[tuple[_Item, bytes]](), 0
        for item in self.items:
            chunk.append((item, self.root.read(item.path)))
            held += len(chunk[-1][1])
            if len(chunk) == CHUNK or held >= CHUNK_BYTES:
                yield chunk
                chunk, held = [], 0
        if chunk:
            yield chunk

    def _check(self, item: _Item, image: bytes) -> None:
        decode_canvas(image, self.image_size, f"{self.root.where}: {item.path}")


def _probe(root: Readable, items: Sequence[_Item], seed: int) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Returns image size, mean and std of a keyed sample of images.

    The size is the median short side, at most 224. Images are read and decoded twice: together they may be larger than
    memory.
    """
    order = keyed_order([item.key for item in items], np.arange(len(items)), seed, "probe")
    chosen = [items[i].path for i in order[:PROBED]]
    sides = [min(size_of(decode_image(root.read(path), f"{root.where}: {path}"))) for path in chosen]
    image_size = max(1, min(int(np.median(sides)), LARGEST_IMAGE_SIZE))
    # sums of integers: the same numbers in any order and on any machine
    sums_C, squares_C, count = np.zeros(3, np.int64), np.zeros(3, np.int64), len(chosen) * image_size**2
    for path in chosen:
        pixels_CP = decode_canvas(root.read(path), image_size, f"{root.where}: {path}").reshape(3, -1).astype(np.int64)
        sums_C += pixels_CP.sum(1)
        squares_C += (pixels_CP**2).sum(1)
    mean_C = sums_C / count
    std_C = np.sqrt(np.maximum(squares_C / count - mean_C**2, 1.0))  # at least one grey level, so it can divide
    return image_size, _rounded(mean_C), _rounded(std_C)


def _rounded(values_C: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(x) / 255.0, 4) for x in values_C)
