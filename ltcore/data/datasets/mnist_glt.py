"""``mnist-glt``: MNIST in colors, long-tailed over the digits and over the colors of each; digits-glt at full size.

A digit is drawn in one of ten pairs of ink and paper, which is its attribute: 7 of 10 training images of a class wear the
pair of their own, 2 of 10 the next one, 1 of 10 any other. Training and validation images are MNIST's training images; of
its test images, test_gbl shows each that is chosen in all ten pairs, and test_cbl once.

Construction: that of ImageNet-GLT (Tang et al., ECCV 2022), by ``glt_splits``. Colored digits as a test of what a classifier
goes by: Arjovsky et al., Invariant Risk Minimization, 2019, whose ColorMNIST has two classes and two colors.

Images are chosen by a hash of their pixels, so that the original files and a folder of the same images give the same bytes.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets import cifar
from ltcore.data.datasets.broken import broken_images
from ltcore.data.datasets.cifar100_glt import pixel_keys
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.digits_glt import COLORS, paint, png
from ltcore.data.datasets.folder_layout import read_folders
from ltcore.data.datasets.glt import QUOTAS, RENDERED, GltSizes, Picks, glt_splits
from ltcore.data.datasets.idx import read_idx
from ltcore.data.datasets.image_folder import refuse_legacy
from ltcore.data.datasets.image_root import Root, open_root
from ltcore.data.datasets.longtail import IntArray, profile
from ltcore.data.images.decode import decode_canvas
from ltcore.data.shards.manifest import REPEATS
from ltcore.data.shards.source import Sample, Source
from ltcore.errors import BadImageError, ConfigError, DataError

CLASSES = tuple(map(str, range(10)))
DIGIT_PX, SIZE = 28, 32
"""Side of MNIST's images, and of those here, with a margin for shifted crops."""
IMBALANCE_FACTOR = 100.0
TEST_PER_CLASS = 200
"""Test digits of a class: 20,000 images of test_gbl, 2,000 of test_cbl."""
TRAIN_SHARE = 0.9
"""Of the images of a class, the most that training takes; validation takes from the rest."""
_PARTS = {"train": "train", "test": "t10k"}
_FOLDERS = ("", "raw", "MNIST/raw")
"""Where the four files lie below the named folder: themselves, or as torchvision keeps them."""


class MnistGlt(Dataset):
    """``mnist-glt``, from torchvision's copy or from ``data.images``: MNIST's four files, or a folder or zip of its images."""

    places = ("images",)

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        super().__init__(cfg, lists=lists, needs_train=needs_train)
        refuse_legacy(cfg)
        where = storage.local_path(cfg.images).absolute() if cfg.images else None
        self._idx = {} if where is None else _idx_files(where)
        self.root = open_root(str(where)) if where is not None and not self._idx else None
        if self.root is not None:
            self.identity = f"{cfg.uri} {self.root.fingerprint}"
        elif self._idx:
            self.identity = f"{cfg.uri} {_digest(path for pair in self._idx.values() for path in pair)}"

    def source(self) -> Source:
        factor = self.cfg.imbalance_factor or IMBALANCE_FACTOR
        parts = self._parts()
        sizes, tests = _sizes(parts, self.cfg, factor)
        picks = {**_splits(parts["train"], sizes, self.cfg), **_splits(parts["test"], tests, self.cfg)}
        splits = {
            split: ColoredRows(parts["test" if split.startswith("test") else "train"], chosen)
            for split, chosen in picks.items()
            if len(chosen)
        }
        mean, std = _statistics(splits["train"])
        return Source(
            name=f"{self.cfg.uri}-if{factor:g}",
            classes=CLASSES,
            attributes=tuple(COLORS),
            splits=splits,
            image_size=SIZE,
            mean=mean,
            std=std,
            shot_rule="rank",
            provenance={
                "source": "MNIST (torchvision)" if not self.cfg.images else "MNIST (data.images)",
                "imbalance_factor": factor,
                "subset_seed": self.cfg.subset_seed,
                "attribute_quotas": list(QUOTAS),
                "train_per_class": list(sizes.train_C),
                "train_cbl_per_class": sizes.train_cbl,
                "val_digits_per_class": sizes.val,
                "test_digits_per_class": tests.test,
                REPEATS: {split: len(COLORS) for split in RENDERED if split in splits},
                "note": "train and train_cbl share a pool, val is of the training digits that neither uses; test_cbl shows each "
                "test digit once and test_gbl in every color",
            },
        )

    def _parts(self) -> dict[str, Digits]:
        if self.root is not None:
            return _from_folders(self.root, self.broken)
        if not self._idx:
            loaded = {part: cifar.load("mnist", train=part == "train") for part in _PARTS}
            return {part: Digits.of(np.asarray(one.data), np.asarray(one.targets)) for part, one in loaded.items()}
        return {part: _from_idx(images, labels) for part, (images, labels) in self._idx.items()}


@dataclass(frozen=True)
class Digits:
    """One of MNIST's two parts."""

    coverage_NHW: NDArray[np.uint8]
    """0 for paper, 255 for ink."""
    labels_N: IntArray
    keys: Sequence[str]

    @classmethod
    def of(cls, coverage_NHW: NDArray[np.uint8], labels_N: NDArray[np.generic]) -> Digits:
        """Names each digit by its pixels."""
        return cls(coverage_NHW, labels_N.astype(np.int64), pixel_keys(iter(coverage_NHW)))

    def painted(self, position: int, attribute: int) -> NDArray[np.uint8]:
        """Returns a digit in the colors of an attribute, uint8 [S, S, 3]."""
        margin = (SIZE - DIGIT_PX) // 2
        return paint(np.pad(self.coverage_NHW[position] / np.float32(255), margin), attribute)


@dataclass(frozen=True)
class ColoredRows:
    """The chosen digits of one split in their colors, as PNG."""

    digits: Digits
    picks: Picks

    def __len__(self) -> int:
        return len(self.picks)

    def __iter__(self) -> Iterator[Sample]:
        names = list(COLORS)
        for position, attribute in self.picks.tolist():
            yield Sample(
                key=f"{self.digits.keys[position]}-{names[attribute]}",
                image=png(self.digits.painted(position, attribute)),
                ext="png",
                label=int(self.digits.labels_N[position]),
                attribute=attribute,
            )


def _sizes(parts: Mapping[str, Digits], cfg: DataConfig, factor: float) -> tuple[GltSizes, GltSizes]:
    """Returns what is taken of MNIST's training images, and of its test images.

    Raises DataError where a digit is missing, ConfigError where there are too few for validation.
    """
    found = {part: np.bincount(digits.labels_N, minlength=10) for part, digits in parts.items()}
    for part, counts_C in found.items():
        if absent := np.flatnonzero(counts_C == 0).tolist():
            raise DataError(f"{cfg.uri}: there is no {part} image of digit {absent[0]}; expected all ten digits.")
    most_C = (found["train"] * TRAIN_SHARE).astype(np.int64)

    def too_many(largest: int) -> bool:
        sizes = profile(largest, 10, factor)
        balanced = round(sum(sizes) / 10)
        return any(max(size, balanced) > most for size, most in zip(sizes, most_C.tolist(), strict=True))

    largest = bisect.bisect_left(range(1, int(most_C.max()) + 1), True, key=too_many)
    train_C = profile(largest, 10, factor)
    if largest == 0 or train_C[-1] == 0:
        needed = math.ceil(factor / TRAIN_SHARE)
        raise DataError(
            f"{cfg.uri}: {int(found['train'].max()):,} training images of a digit are too few for imbalance_factor={factor:g}, "
            f"which needs {needed:,}. Give all of MNIST, or a smaller data.imbalance_factor."
        )
    train_cbl = round(sum(train_C) / 10)
    room = int(min(found["train"] - np.maximum(train_C, train_cbl)))
    if cfg.val_per_class > room:
        raise ConfigError(f"data.val_per_class={cfg.val_per_class}: {cfg.uri} has room for at most {room} here.")
    test = min(TEST_PER_CLASS, int(found["test"].min()))
    train = GltSizes(train_C=tuple(train_C), train_cbl=train_cbl, val=cfg.val_per_class, test=0)
    return train, GltSizes(train_C=(0,) * 10, train_cbl=0, val=0, test=test)


def _splits(digits: Digits, sizes: GltSizes, cfg: DataConfig) -> dict[str, Picks]:
    found = glt_splits(digits.keys, digits.labels_N, None, sizes, num_attributes=len(COLORS), seed=cfg.subset_seed)
    return {split: picks for split, picks in found.items() if len(picks)}


def _statistics(rows: ColoredRows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel, in integers, whose sums have no order."""
    sum_3, square_3 = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for position, attribute in rows.picks:
        pixels_N3 = rows.digits.painted(position, attribute).reshape(-1, 3).astype(np.int64)
        sum_3 += pixels_N3.sum(0)
        square_3 += (pixels_N3**2).sum(0)
    count = len(rows) * SIZE * SIZE
    mean_3 = sum_3 / count
    std_3 = np.sqrt(square_3 / count - mean_3**2)
    return tuple(round(float(x) / 255, 4) for x in mean_3), tuple(round(float(x) / 255, 4) for x in std_3)


def _idx_files(where: Path) -> dict[str, tuple[Path, Path]]:
    """Returns part -> (images, labels) where MNIST's files lie in a folder; {} where it has none of them.

    Raises DataError where only some are there.
    """
    for folder in (where / name for name in _FOLDERS):
        found = {
            f"{stem}-{kind}": _named(folder, f"{stem}-{kind}")
            for stem in _PARTS.values()
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        }
        if any(found.values()):
            there = {name: path for name, path in found.items() if path is not None}
            if missing := sorted(found.keys() - there.keys()):
                raise DataError(f"{folder} has no {missing[0]} (or .gz): MNIST is four files. Fetch what is missing.")
            of = {part: f"{stem}-{{}}" for part, stem in _PARTS.items()}
            return {
                part: (there[name.format("images-idx3-ubyte")], there[name.format("labels-idx1-ubyte")])
                for part, name in of.items()
            }
    return {}


def _named(folder: Path, name: str) -> Path | None:
    """Returns the file of that name, unpacked or gzipped, also with a dot in place of its second hyphen."""
    dotted = name.replace("-idx", ".idx")
    return next((path for n in (name, dotted, f"{name}.gz", f"{dotted}.gz") if (path := folder / n).is_file()), None)


def _digest(paths: Iterator[Path]) -> str:
    words = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            words.update(hashlib.file_digest(stream, "sha256").digest())
    return words.hexdigest()


def _from_idx(images: Path, labels: Path) -> Digits:
    coverage_NHW, labels_N = read_idx(images, 3), read_idx(labels, 1)
    if coverage_NHW.shape[1:] != (DIGIT_PX, DIGIT_PX):
        height, width = coverage_NHW.shape[1:]
        raise DataError(f"{images} has images of {height}x{width}, expected {DIGIT_PX}x{DIGIT_PX}. Give MNIST's own.")
    if len(coverage_NHW) != len(labels_N) or labels_N.max() > 9:
        raise DataError(
            f"{labels} has {len(labels_N):,} labels up to {labels_N.max()} for {len(coverage_NHW):,} images, expected one of 0 "
            "to 9 for each. Give MNIST's own files."
        )
    return Digits.of(coverage_NHW, labels_N)


def _from_folders(root: Root, broken: Mapping[str, str]) -> dict[str, Digits]:
    """Reads ``train/<digit>/`` and ``test/<digit>/``, light digits on dark as MNIST has them. Raises DataError for others."""
    found = read_folders(root)
    if found.splits.keys() != {"train", "test"} or tuple(sorted(found.classes)) != CLASSES:
        raise DataError(
            f"{root.where} has the splits {', '.join(found.splits)} of {len(found.classes)} classes; expected MNIST's four "
            "files (train-images-idx3-ubyte, ...), or train/<digit>/ and test/<digit>/ with images of all ten digits."
        )
    parts, damaged = {}, dict[str, BadImageError]()
    for part in _PARTS:
        entries = [entry for entry in found.splits[part] if entry.path not in broken]
        root.announce([entry.path for entry in entries])
        coverage, labels = [], []
        for entry in entries:
            try:
                canvas_3HW = decode_canvas(root.read(entry.path), DIGIT_PX, f"{root.where}: {entry.path}")
            except BadImageError as error:
                damaged[entry.path] = error
                continue
            coverage.append(canvas_3HW[0])
            labels.append(int(found.classes[entry.label]))
        parts[part] = coverage, labels
    if damaged:
        raise broken_images(root.where, damaged)
    return {part: Digits.of(np.stack(coverage), np.array(labels)) for part, (coverage, labels) in parts.items()}
