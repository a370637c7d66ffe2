"""``cifar100-glt``: CIFAR-100's 20 superclasses as classes, and the five fine classes of each as its attributes.

Construction: the long tail of ImageNet-GLT (Tang et al., ECCV 2022), exponential over the classes and by quotas over the
attributes of each, here 10 : 5 : 3 : 1 : 1. There the attributes are clusters of features; these are true ones, which
people named. Training and validation images are CIFAR-100's training images, tests its test images: test_gbl is all of
them, as published, and test_cbl is the part of them whose fine classes follow the quotas.

Images are chosen by a hash of their pixels, so that the original archive and a folder of the same images give the same
benchmark.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets import cifar
from ltcore.data.datasets.benchmark import benchmark_source
from ltcore.data.datasets.cifar import IMAGE_SIZE, MEAN, STD, CifarRows
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.folder_layout import Entries, Entry, Layout, read_folders
from ltcore.data.datasets.glt import quota_counts
from ltcore.data.datasets.image_folder import refuse_legacy
from ltcore.data.datasets.image_root import Root, open_root
from ltcore.data.datasets.longtail import IntArray, keyed_order, profile
from ltcore.data.images.decode import decode_image
from ltcore.data.shards.source import Source
from ltcore.errors import BadImageError, ConfigError, DataError

SUPERCLASSES = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household electrical devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large man-made outdoor things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large natural outdoor scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles 2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
FINE = tuple(sorted(name for names in SUPERCLASSES.values() for name in names))
"""Attribute names; their positions are CIFAR-100's own fine labels."""
CLASSES = tuple(SUPERCLASSES)
PER_CLASS = 5
QUOTAS = (10, 5, 3, 1, 1)
MAJORITY = QUOTAS[0] / sum(QUOTAS)
IMBALANCE_FACTOR = 50.0
"""The largest of the usual factors 10, 50 and 100 that leaves no attribute of any class without a training image."""
TRAIN_SHARE = 0.9
"""Of the images of a fine class, what the largest class takes of its majority; validation takes from the rest."""

_LABEL_OF_FINE = np.array([next(c for c, names in enumerate(SUPERCLASSES.values()) if f in names) for f in FINE])
_FINE_OF_LABEL = [[FINE.index(name) for name in names] for names in SUPERCLASSES.values()]


class Cifar100Glt(Dataset):
    """``cifar100-glt``, from the original archive or from ``data.images``, a folder or zip of the same images."""

    places = ("images",)

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        super().__init__(cfg, lists=lists, needs_train=needs_train)
        refuse_legacy(cfg)
        self.root = open_root(str(storage.local_path(cfg.images).absolute())) if cfg.images else None
        if self.root is not None:
            self.identity = f"{cfg.uri} {self.root.fingerprint}"

    def source(self) -> Source:
        if self.root is None:
            return _from_archive(self.cfg)
        return _from_folders(self.root, self.cfg, self.broken)


@dataclass(frozen=True)
class _Pool:
    """Images of one of CIFAR-100's two parts."""

    keys: Sequence[str]
    """Of their pixels."""
    fine_N: IntArray

    def by_fine(self, seed: int) -> list[list[int]]:
        """Returns the positions of each fine class in hash order."""
        return [
            keyed_order(self.keys, np.flatnonzero(self.fine_N == f), seed, "glt").tolist() for f in range(len(FINE))
        ]


def choose(train: _Pool, test: _Pool, cfg: DataConfig, where: str) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Returns split -> positions, of ``test`` in the tests and of ``train`` in the others, and the provenance.

    Raises DataError where a fine class has no image or too few for validation.
    """
    factor = cfg.imbalance_factor or IMBALANCE_FACTOR
    train_by_fine, test_by_fine = train.by_fine(cfg.subset_seed), test.by_fine(cfg.subset_seed)
    for part, by_fine in (("training", train_by_fine), ("test", test_by_fine)):
        if empty := [name for name, found in zip(FINE, by_fine, strict=True) if not found]:
            raise DataError(f"{where} has no {part} image of {empty[0]}; expected all 100 classes of CIFAR-100.")
    last = min(map(len, test_by_fine))
    train_C = profile(_largest(train_by_fine, factor), len(CLASSES), factor)
    sizes_C = {
        "train": train_C,
        "train_cbl": [_mean(train_C)] * len(CLASSES),
        "test_cbl": [int(last / MAJORITY)] * len(CLASSES),
    }
    splits: dict[str, list[int]] = {name: [] for name in ("train", "train_cbl", "val", "test_cbl", "test_gbl")}
    for label, fines in enumerate(_FINE_OF_LABEL):
        counts = {name: _quotas(n_C[label]) for name, n_C in sizes_C.items()}
        for place, f in enumerate(fines):
            used = max(counts["train"][place], counts["train_cbl"][place])
            splits["train"] += train_by_fine[f][: counts["train"][place]]
            splits["train_cbl"] += train_by_fine[f][: counts["train_cbl"][place]]
            splits["val"] += _validation(train_by_fine[f][used:], cfg, FINE[f])
            splits["test_cbl"] += test_by_fine[f][: counts["test_cbl"][place]]
            splits["test_gbl"] += test_by_fine[f][:last]
    chosen = {
        "imbalance_factor": factor,
        "subset_seed": cfg.subset_seed,
        "attribute_quotas": list(QUOTAS),
        "train_per_class": train_C,
        "train_cbl_per_class": sizes_C["train_cbl"][0],
        "val_per_attribute": val_per_attribute(cfg),
        "note": "train and train_cbl share a pool, val is of the training images that neither uses; test_gbl is of CIFAR-100's "
        "test images, and test_cbl a part of it",
    }
    return {name: found for name, found in splits.items() if found}, chosen


def _quotas(n: int) -> list[int]:
    """Returns the images of each fine class of a class of ``n``, the first by name the most frequent."""
    return quota_counts(n, range(PER_CLASS), QUOTAS).tolist()


def _largest(train_by_fine: Sequence[Sequence[int]], factor: float) -> int:
    """Returns the images of the largest class, the most for which no fine class lacks any: 900 of CIFAR-100.

    It leaves images for validation, so it changes neither with their number nor with a few broken images.
    """

    def too_many(largest: int) -> bool:
        sizes = profile(largest, len(CLASSES), factor)
        return any(
            count > len(train_by_fine[f])
            for fines, n in zip(_FINE_OF_LABEL, sizes, strict=True)
            for split_n in (n, _mean(sizes))
            for f, count in zip(fines, _quotas(split_n), strict=True)
        )

    most = int(max(map(len, train_by_fine)) * TRAIN_SHARE / MAJORITY)
    return bisect.bisect_left(range(1, most + 1), True, key=too_many)


def _mean(sizes: Sequence[int]) -> int:
    return round(sum(sizes) / len(sizes))


def val_per_attribute(cfg: DataConfig) -> int:
    """Returns the validation images of each attribute, as many as make up ``val_per_class`` or just more."""
    return -(-cfg.val_per_class // PER_CLASS)


def _validation(unused: list[int], cfg: DataConfig, name: str) -> list[int]:
    wanted = val_per_attribute(cfg)
    if len(unused) < wanted:
        raise ConfigError(
            f"data.val_per_class={cfg.val_per_class}: {name} has {len(unused)} images beside those for training; use at most "
            f"{len(unused) * PER_CLASS}."
        )
    return unused[:wanted]


def pixel_keys(images: Iterator[np.ndarray]) -> list[str]:
    """Returns a distinct key for each uint8 image [H, W, 3], the same for the same pixels in any file format."""
    keys, seen = list[str](), dict[str, int]()
    for image_HW3 in images:
        key = hashlib.blake2b(np.ascontiguousarray(image_HW3).tobytes(), digest_size=16).hexdigest()
        seen[key] = seen.get(key, 0) + 1
        keys.append(f"{key}-{seen[key]}")
    return keys


def _from_archive(cfg: DataConfig) -> Source:
    parts = {part: cifar.load("cifar100", train=part == "train") for part in ("train", "test")}
    fine = {part: np.asarray(data.targets, np.int64) for part, data in parts.items()}
    pools = {part: _Pool(pixel_keys(iter(data.data)), fine[part]) for part, data in parts.items()}
    splits, chosen = choose(pools["train"], pools["test"], cfg, "CIFAR-100")

    def rows(split: str, positions: list[int]) -> CifarRows:
        part = "test" if split.startswith("test") else "train"
        chosen_n = np.sort(np.array(positions, np.int64))
        return CifarRows(
            f"cifar100/{part}", parts[part].data, _LABEL_OF_FINE[fine[part]], chosen_n, attributes_N=fine[part]
        )

    return Source(
        name=_name(cfg),
        classes=CLASSES,
        attributes=FINE,
        splits={split: rows(split, positions) for split, positions in splits.items()},
        image_size=IMAGE_SIZE,
        mean=MEAN,
        std=STD,
        shot_rule="rank",
        provenance={"source": "cifar100 (torchvision)", **chosen},
    )


def _from_folders(root: Root, cfg: DataConfig, broken: Mapping[str, str]) -> Source:
    found = read_folders(root)
    if found.splits.keys() != {"train", "test"}:
        raise DataError(
            f"{root.where} has the splits {', '.join(found.splits)}; expected CIFAR-100's own, train/<class>/<image> and "
            "test/<class>/<image>."
        )
    fine_of = _fine_of(found.classes, root.where)
    entries = {split: [e for e in found.splits[split] if e.path not in broken] for split in ("train", "test")}
    pools = {
        part: _Pool(
            pixel_keys(_pixels(root, [entry.path for entry in listed])),
            np.array([fine_of[entry.label] for entry in listed], np.int64),
        )
        for part, listed in entries.items()
    }
    splits, chosen = choose(pools["train"], pools["test"], cfg, root.where)

    def labeled(split: str, positions: list[int]) -> Entries:
        part = entries["test" if split.startswith("test") else "train"]
        ordered = sorted(positions)
        fine = [fine_of[part[i].label] for i in ordered]
        return Entries.of(Entry(part[i].path, int(_LABEL_OF_FINE[f]), f) for i, f in zip(ordered, fine, strict=True))

    layout = Layout(
        classes=CLASSES,
        splits={split: labeled(split, positions) for split, positions in splits.items()},
        outer=found.outer,
        skipped=found.skipped,
        attributes=FINE,
    )
    source = benchmark_source(root, layout, cfg, broken, name=_name(cfg), chosen=chosen)
    return replace(source, mean=MEAN, std=STD)


def _fine_of(names: Sequence[str], where: str) -> list[int]:
    """Returns the fine class of each folder. Raises DataError for a folder that is none of them."""
    numbers = {name: number for number, name in enumerate(FINE)}
    plain = [name.lower().replace(" ", "_").replace("-", "_") for name in names]
    if odd := next((name for name, word in zip(names, plain, strict=True) if word not in numbers), None):
        raise DataError(f"{where}: {odd!r} is none of CIFAR-100's 100 classes, such as {FINE[0]} or {FINE[1]}.")
    return [numbers[word] for word in plain]


def _pixels(root: Root, paths: Sequence[str]) -> Iterator[np.ndarray]:
    """Yields the pixels of each image, [H, W, 3]; of a broken one, which is named when it is written, its path."""
    root.announce(paths)
    for path in paths:
        try:
            yield np.asarray(decode_image(root.read(path), path)).transpose(1, 2, 0)
        except BadImageError:
            yield np.frombuffer(path.encode(), np.uint8)


def _name(cfg: DataConfig) -> str:
    return f"{cfg.uri}-if{cfg.imbalance_factor or IMBALANCE_FACTOR:g}"
