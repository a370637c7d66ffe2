"""``mscoco-glt``: crops of MSCOCO's objects, long-tailed over 29 categories and over annotated attributes.

Source: Tang et al., "Invariant Feature Learning for Generalized Long-Tailed Classification" (ECCV 2022), construction of
MSCOCO-GLT from COCO Attributes. test_gbl takes, object after object, the one that makes the attributes of its class most
even; test_cbl is drawn i.i.d. inside a class; training classes fall off exponentially; test_glt and val are i.i.d. parts of
the training images.
Differs: "at random" is "smallest hash of (seed, key)", where theirs depends on Python's hash seed; both training splits
are of one construction with one set of tests (200 a class), so train_cbl is smaller than theirs by what the larger tests take.

One attribute per object: of those that it has, the one that most training objects of its class have. So an object of a
rare attribute is one that lacks the typical ones. Theirs are thirds by a score, per split, which they call unfit for reports.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.benchmark import benchmark_source
from ltcore.data.datasets.coco_objects import Box, CocoObjects, read_objects
from ltcore.data.datasets.columns import Texts
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.folder_layout import Entries, Entry, Layout
from ltcore.data.datasets.image_folder import refuse_legacy
from ltcore.data.datasets.image_root import AtHand, Divisible, Files, Readable, digest, open_root
from ltcore.data.datasets.longtail import IntArray, keyed_order, profile
from ltcore.data.images.decode import Pixels, decode_image, size_of
from ltcore.data.shards.source import Source
from ltcore.errors import BadImageError, ConfigError, DataError

ATTRIBUTES = "cocottributes.json"
IMBALANCE_FACTOR = 200.0
TEST_PER_CLASS = 200
SMALL_PX, MARGIN_PX, MARGIN_SHARE = 100, 50, 0.2
"""A side of a box that is shorter than the first grows by the second at both ends, others by the share of themselves."""
QUALITY = 95
"""Of the JPEGs in which crops are stored; PIL's usual 75, which the authors store, would degrade them a second time."""


class MscocoGlt(Dataset):
    """``mscoco-glt``, from the folders that ``data.images`` and ``data.annotations`` name."""

    places = ("images", "annotations")

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        super().__init__(cfg, lists=lists, needs_train=needs_train)
        refuse_legacy(cfg)
        if cfg.images is None or cfg.annotations is None:
            raise ConfigError(
                f"{cfg.uri} is made of files that you have: give data.images=DIR, which holds MSCOCO's train2014 and val2014, "
                f"and data.annotations=DIR, which holds its instances_*.json and {ATTRIBUTES} (make_shards.py: --images and "
                "--annotations)."
            )
        self.root = open_root(str(storage.local_path(cfg.images).absolute()))
        self.instances, self.attributes = _annotation_files(storage.local_path(cfg.annotations).absolute())
        files = [*self.instances, self.attributes]
        described = digest(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
        self.identity = f"{cfg.uri} {self.root.fingerprint} {described}"

    def source(self) -> Source:
        objects = read_objects(self.instances, self.attributes)
        crops = _Crops(self.root, objects)
        usable_n = np.array([i for i, path in enumerate(crops.files) if path not in self.broken], np.int64)
        splits, chosen = choose(objects, usable_n, self.cfg, test=TEST_PER_CLASS)
        attributes_N = single_attributes(objects, splits["train"])
        layout = Layout(
            classes=objects.classes,
            splits={
                name: Entries.of(
                    Entry(crops.files[i], int(objects.labels_N[i]), int(attributes_N[i])) for i in sorted(found)
                )
                for name, found in splits.items()
                if found
            },
            attributes=objects.attributes,
        )
        factor = self.cfg.imbalance_factor or IMBALANCE_FACTOR
        return benchmark_source(
            crops, layout, self.cfg, self.broken, name=f"{self.cfg.uri}-if{factor:g}", shot_rule="glt", chosen=chosen
        )


def _annotation_files(folder: Path) -> tuple[list[Path], Path]:
    instances, attributes = sorted(folder.glob("instances_*.json")), folder / ATTRIBUTES
    if not instances or not attributes.is_file():
        what = ATTRIBUTES if instances else "instances_*.json"
        raise DataError(
            f"{folder} holds no {what}; expected instances_train2014.json, instances_val2014.json (MSCOCO's), and "
            f"{ATTRIBUTES} (COCO Attributes, as the header of recipe mscoco_glt_ce makes it)."
        )
    return instances, attributes


def choose(
    objects: CocoObjects, usable_n: IntArray, cfg: DataConfig, *, test: int
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Returns split -> positions, and the provenance. Raises DataError where a class has too few objects.

    Args:
        objects: all of them.
        usable_n: positions that may be chosen.
        cfg: of it seed, imbalance factor and validation images per class.
        test: images per class in each of the two balanced tests, and on average in test_glt.
    """
    num_classes, seed = len(objects.classes), cfg.subset_seed
    splits: dict[str, list[int]] = {
        name: [] for name in ("train", "train_cbl", "val", "test_cbl", "test_gbl", "test_glt")
    }
    pools = list[list[int]]()
    for label, name in enumerate(objects.classes):
        pool_n = keyed_order(objects.keys, usable_n[objects.labels_N[usable_n] == label], seed, "glt")
        even = balanced_subset(objects.positive_NA[pool_n], test)
        rest = np.delete(pool_n, even).tolist()
        if len(even) < test or len(rest) <= test:
            raise DataError(
                f"class {name!r} has {len(pool_n)} usable objects, too few for two tests of {test} and training."
            )
        splits["test_gbl"] += pool_n[even].tolist()
        splits["test_cbl"] += rest[:test]
        pools.append(rest[test:])
    factor = cfg.imbalance_factor or IMBALANCE_FACTOR
    by_size = sorted(range(num_classes), key=lambda label: (-len(pools[label]), label))
    sizes = profile(len(pools[by_size[0]]), num_classes, factor)
    selected = [i for label, n in zip(by_size, sizes, strict=True) for i in pools[label][:n]]
    held_out = keyed_order(objects.keys, np.array(selected, np.int64), seed, "iid").tolist()
    splits["test_glt"] = held_out[: test * num_classes]
    splits["val"] = held_out[test * num_classes :][: cfg.val_per_class * num_classes]
    taken = {*splits["test_glt"], *splits["val"]}
    splits["train"] = [i for i in selected if i not in taken]
    unused = [[i for i in pool if i not in taken] for pool in pools]
    splits["train_cbl"] = [i for pool in unused for i in pool[: min(map(len, unused))]]
    train_C = np.bincount(objects.labels_N[splits["train"]], minlength=num_classes)
    if not train_C.all():
        raise DataError(
            f"class {objects.classes[int(train_C.argmin())]!r} is left without a training image; use a smaller "
            f"imbalance factor than {factor:g}, or fewer validation images than {cfg.val_per_class} per class."
        )
    return splits, {
        "imbalance_factor": factor,
        "subset_seed": seed,
        "train_per_class": train_C.tolist(),
        "test_per_class": test,
        "attribute": "of those an object has, the one that most training objects of its class have",
        "note": "train and train_cbl share a pool; test_glt and val are i.i.d. parts of what was selected for training",
    }


def balanced_subset(positive_nA: NDArray[np.bool_], count: int) -> list[int]:
    """Returns positions of at most ``count`` objects whose attributes together are as even as a greedy choice gets.

    Each next object minimizes the standard deviation of the normalized sum; ties go to the first. Objects without an
    attribute are never taken.
    """
    vectors_nA = positive_nA.astype(np.float64)
    sizes_n = vectors_nA.sum(1)
    open_n = sizes_n > 0
    total_A = np.zeros(vectors_nA.shape[1])
    chosen = list[int]()
    while len(chosen) < count and open_n.any():
        # the mean of what is normalized is 1/A, so the least sum of squares is the least deviation; v has only 0 and 1
        squares_n = total_A @ total_A + 2 * (vectors_nA @ total_A) + sizes_n
        uneven_n = np.where(open_n, squares_n / np.maximum(total_A.sum() + sizes_n, 1.0) ** 2, np.inf)
        best = int(uneven_n.argmin())
        chosen.append(best)
        open_n[best] = False
        total_A += vectors_nA[best]
    return chosen


def single_attributes(objects: CocoObjects, train: Sequence[int]) -> IntArray:
    """Returns [N] the one attribute of each object, -1 for an object that has none.

    It is the one of its own that most training objects of its class have, ties by attribute.
    """
    counts_CA = np.zeros((len(objects.classes), len(objects.attributes)), np.int64)
    np.add.at(counts_CA, objects.labels_N[list(train)], objects.positive_NA[list(train)])
    own_NA = np.where(objects.positive_NA, counts_CA[objects.labels_N], -1)
    return np.where(objects.positive_NA.any(1), own_NA.argmax(1), -1)


class _Crops(AtHand):
    """The crops of all objects, made out of their images when they are read."""

    skipped: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    def __init__(self, root: Files, objects: CocoObjects) -> None:
        self.where, self.fingerprint, self._root = root.where, root.fingerprint, root
        folders = [name.replace(" ", "_") for name in objects.classes]
        self.files = Texts.of(
            f"{folders[label]}/{key}.jpg" for key, label in zip(objects.keys, objects.labels_N, strict=True)
        )
        by_id = {_image_id(file): file for file in root.files}
        absent = [number for number in objects.image_ids if number not in by_id]
        if absent:
            raise DataError(
                f"{root.where}: {len(set(absent)):,} images of annotated objects are missing, the first with the number "
                f"{absent[0]}; expected MSCOCO's images of both train and val."
            )
        images = [by_id[number] for number in objects.image_ids]
        self._places = dict(zip(self.files, zip(images, objects.boxes, strict=True), strict=True))

    def read(self, path: str) -> bytes:
        return _encoded_crop(self._root, *self._places[path])

    def part(self, paths: Iterable[str]) -> _CropsPart:
        return _CropsPart(self.where, self._root, self._places).part(paths)


@dataclass(frozen=True)
class _CropsPart(AtHand):
    """Some of the crops."""

    where: str
    root: Divisible
    places: Mapping[str, tuple[str, Box]]
    """Path -> image and box of the object."""

    def part(self, paths: Iterable[str]) -> _CropsPart:
        places = {path: self.places[path] for path in paths}
        return _CropsPart(self.where, self.root.part(image for image, _ in places.values()), places)

    def read(self, path: str) -> bytes:
        return _encoded_crop(self.root, *self.places[path])


def _encoded_crop(root: Readable, image: str, box: Box) -> bytes:
    from PIL import Image

    crop_3HW = crop(decode_image(root.read(image), image), box, image)
    out = io.BytesIO()
    Image.fromarray(crop_3HW.transpose(1, 2, 0)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _image_id(file: str) -> int:
    """Returns 9 for ``COCO_train2014_000000000009.jpg`` and for ``000000000009.jpg``, -1 for other names."""
    digits = PurePosixPath(file).stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) <= 18 else -1


def crop(image_3HW: Pixels, box: Box, where: str) -> Pixels:
    """Returns the enlarged box of an object, padded with black to a square [3, S, S]; ``where`` names it if it is empty."""
    height, width = size_of(image_3HW)
    left, right = enlarged(box[0], box[2], width)
    top, bottom = enlarged(box[1], box[3], height)
    if left >= right or top >= bottom:
        problem = f"the box {box} of an object is outside of the image's {width} x {height} pixels"
        raise BadImageError(f"{where}: {problem}. Download images and annotations again.", problem)
    part_3hw = image_3HW[:, top:bottom, left:right]
    side = max(bottom - top, right - left)
    above, before = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    square_3SS = np.zeros((3, side, side), np.uint8)
    square_3SS[:, above : above + bottom - top, before : before + right - left] = part_3hw
    return square_3SS


def enlarged(start: float, length: float, end: int) -> tuple[int, int]:
    """Returns first and last pixel (exclusive) of one side of a box with its margins, inside of 0..end."""
    margin = MARGIN_PX if length < SMALL_PX else MARGIN_SHARE * length
    return round(max(start - margin, 0)), round(min(start + length + margin, end))
