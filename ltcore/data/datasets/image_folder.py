"""Images in a directory or zip, class by class, or named by list files; original bytes are passed through untouched."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.broken import broken_images
from ltcore.data.datasets.columns import Texts
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.folder_layout import Entries, Layout, read_folders
from ltcore.data.datasets.image_root import Files, Readable, Root, open_root
from ltcore.data.datasets.listed import read_lists
from ltcore.data.datasets.lists import file_name
from ltcore.data.datasets.longtail import VAL_FROM, carve, keyed_order, tail_name, tail_provenance
from ltcore.data.images.decode import decode_canvas, decode_image, extension_of, size_in_header
from ltcore.data.shards.manifest import SKIPPED
from ltcore.data.shards.remarks import BROKEN, CARVED, CLASSES_FROM
from ltcore.data.shards.source import EXTENSIONS, Sample, Source, image_ext, safe_key, suffix_of
from ltcore.errors import BadImageError, ConfigError, DataError
from ltcore.limits import HELD_BYTES
from ltcore.shots import GIVEN, shot_rule_of
from ltcore.text import storable

TEST_SHARE = 5
"""A root without a test split gives 1/5 of each class to the test, rounded down, but one image of a class of 2 to 4."""
_TEST_MADE = f"1/{TEST_SHARE} of each class by keyed hash, but one image of a class of two to four"
LARGEST_IMAGE_SIZE = 224
PROBED = 512
"""Training images, chosen by hash, from which image size, mean and std are measured."""
CHUNK = 256
"""Images that are in memory at once; the last one makes them ``HELD_BYTES`` or more."""
Sums = tuple[np.ndarray, np.ndarray, int]
"""Sums and squares [C] of pixels, and over how many images."""
_Probed = tuple[int, tuple[float, ...], tuple[float, ...]]
T = TypeVar("T")


class ImageFolder(Dataset):
    """The images of a local directory or zip, by class folders or by list files."""

    by_path = True
    has_folders = True

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        refuse_legacy(cfg)
        path = storage.local_path(cfg.uri).absolute()
        self.cfg = cfg
        self.root: Root = open_root(str(path))
        self.layout = read_layout(self.root, cfg, lists, needs_train)
        self.name, self.identity = storable(path.stem), folders_identity(cfg, self.root.fingerprint)

    def source(self) -> Source:
        return image_folder(self.root, self.layout, self.cfg, self.broken)

    def files(self) -> tuple[Files, Layout] | None:
        return (self.root, self.layout) if isinstance(self.root, Files) else None


def refuse_legacy(cfg: DataConfig) -> None:
    """Raises ConfigError where the published selection is asked for, which needs published data."""
    if cfg.imbalance_factor is not None and cfg.subset == "legacy":
        raise ConfigError(
            "data.subset='legacy' needs the original order of a published data set, which other images do "
            "not have; use data.subset='keyed', which has the same class counts."
        )


def read_layout(root: Root, cfg: DataConfig, lists: Lists, needs_train: bool) -> Layout:
    """Reads which image is of which class and split, off the lists or, where there are none, off the folders."""
    if not lists:
        return read_folders(root, needs_train=needs_train, classes_from=cfg.classes_from)
    if cfg.classes_from:
        raise ConfigError(
            f"data.classes_from={cfg.classes_from} has no effect beside list files, which name the classes."
        )
    return read_lists(root, lists, cfg)


def folders_identity(cfg: DataConfig, fingerprint: str) -> str:
    """Returns the identity of images whose folders are their classes."""
    return f"{fingerprint} {cfg.classes_from or ''}"


def image_folder(root: Root, layout: Layout, cfg: DataConfig, broken: Mapping[str, str] | None = None) -> Source:
    """Returns the source for the images below ``root``, as if those of ``broken`` (path -> problem) were not there.

    Where ``layout`` has no test split (and no val split), a fifth of each class becomes one; where it has no val split,
    :func:`ltcore.data.datasets.longtail.carve` makes one. A class of one image stays in training; one of two gives a
    test image, one of three a validation image as well. The split of an image depends only on its path and the seed.
    Data without a train split, which are for evaluation, stay as they are.
    """
    where = Path(root.where).resolve() if storage.is_local(root.where) else Path(file_name(root.where))
    broken, stem = broken or {}, storable(where.stem)
    splits = {split: items_of(root, layout, entries, broken) for split, entries in layout.splits.items()}
    if "train" in splits:
        splits, chosen = carve_splits(splits, layout.classes, cfg)
        name, probed = tail_name(stem, cfg), splits["train"]
    else:
        chosen = {"test": "as given", "train": "none: for evaluation"}
        name, probed = stem, list(itertools.chain(*splits.values()))
    if cfg.classes_from:
        chosen[CLASSES_FROM] = cfg.classes_from
    if layout.skipped:
        chosen[SKIPPED] = layout.skipped
    if broken:
        chosen[BROKEN] = dict(broken)
    chosen |= layout.provenance
    keys, paths = [item.key for item in probed], [item.path for item in probed]
    image_size, mean, std = probe(root, keys, paths, cfg.subset_seed)
    groups = layout.shot_groups if cfg.imbalance_factor is None else ()  # another tail has others
    rows, later = dict[str, ImageRows](), list[Item]()
    for split in reversed(list(splits)):
        rows[split] = ImageRows(root, splits[split], later)
        later = [*splits[split], *later]
    return Source(
        name=name,
        classes=layout.classes,
        attributes=layout.attributes,
        splits={split: rows[split] for split in splits},
        image_size=image_size,
        mean=mean,
        std=std,
        shot_rule=GIVEN if groups else shot_rule_of(splits),
        shot_groups=groups,
        provenance={"source": f"images of {stem}", **chosen},
    )


def carve_splits(
    given: Mapping[str, list[Item]], classes: Sequence[str], cfg: DataConfig
) -> tuple[dict[str, list[Item]], dict[str, Any]]:
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
        smallest=VAL_FROM - test_made,
    )
    splits["train"] = [train[i] for i in carved.train_n]
    if not has_val:
        splits["val"] = [train[i] for i in carved.val_m]
        held = {item.path for item in splits["val"]}
        for split in given.keys() - {"train"}:
            if split.startswith("train"):  # a second one to choose from, which may share images with the first
                splits[split] = [item for item in given[split] if item.path not in held]
    splits = {split: items for split, items in splits.items() if items or split == "train"}
    has_test = any(split.startswith("test") for split in given)
    chosen = {
        "test": _TEST_MADE if test_made else "as given" if has_test else "none",
        **tail_provenance(cfg, carved, classes, val_given=has_val),
    }
    if made := [split for split in ("val", "test") if split in splits and split not in given]:
        chosen[CARVED] = made
    return splits, chosen


@dataclass(frozen=True, slots=True)
class Item:
    """One image with its key and class."""

    path: str
    key: str
    ext: str
    """'' where the content alone tells it."""
    label: int
    attribute: int


def items_of(root: Root, layout: Layout, entries: Entries, broken: Mapping[str, str]) -> list[Item]:
    """Returns all of every image but the broken ones."""
    return [
        Item(entry.path, key, ext, entry.label, entry.attribute)
        for entry, (key, ext) in zip(entries, keys_of(root, layout, entries.paths), strict=True)
        if entry.path not in broken
    ]


def keys_of(root: Root, layout: Layout, paths: Texts) -> Iterator[tuple[str, str]]:
    """Yields key and type of every image.

    The key is the path inside of the outer folders, without its extension unless two files differ in nothing else: a
    zip gives the splits that its folder gives.
    """
    stems = Texts.of(_plain(path).removesuffix(suffix_of(path)) for path in paths)
    for path, stem, is_shared in zip(paths, stems, stems.repeated(), strict=True):
        is_web = storage.is_web(path)
        ext = "" if root.by_content else image_ext(file_name(path) if is_web else path)
        if not ext and not root.by_content and not is_web:  # where the content tells
            raise DataError(f"{root.where}: {path} is no image; known are {', '.join(EXTENSIONS)}. Remove it.")
        yield safe_key((path if is_shared else stem).removeprefix(layout.outer)), ext


def _plain(path: str) -> str:
    """Returns the path as pathlib spells it: without what zips and addresses in the web have twice or for nothing."""
    return str(PurePosixPath(path)) if "//" in path or "/./" in path or path.startswith("./") else path


def _hold_out(items: Sequence[Item], num_classes: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Returns the items without the test share of each class, and that share."""
    keys, labels_N = [item.key for item in items], np.array([item.label for item in items])
    test: set[int] = set()
    for c in range(num_classes):
        members = keyed_order(keys, np.flatnonzero(labels_N == c), seed, "test")
        share = max(1, len(members) // TEST_SHARE) if len(members) > 1 else 0
        test.update(members[:share].tolist())
    return [x for i, x in enumerate(items) if i not in test], [items[i] for i in sorted(test)]


@dataclass(frozen=True)
class ImageRows:
    """One split; every image is decoded once on its way, so that a broken one is named now and not in training.

    The broken ones of the splits after it are named with its own.
    """

    root: Root
    items: Sequence[Item]
    later: Sequence[Item]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        errors: dict[str, BadImageError] = {}
        yield from decoded(self.root, self.items, self._sample, errors)
        if errors:
            for _ in decoded(self.root, self.later, self._sample, errors):
                pass
            raise broken_images(self.root.where, errors)

    def _sample(self, item: Item, image: bytes) -> Sample:
        return sound_sample(item, image, f"{self.root.where}: {item.path}")


def sound_sample(item: Item, image: bytes, where: str) -> Sample:
    """Returns the image as it is. Raises BadImageError, which begins with ``where``, if it cannot be decoded."""
    decode_image(image, where)
    ext = item.ext or extension_of(image)
    return Sample(key=item.key, image=image, ext=ext, label=item.label, attribute=item.attribute)


def decoded(
    root: Readable,
    items: Sequence[Item],
    make: Callable[[Item, bytes], T],
    errors: dict[str, BadImageError],
    threads: int | None = None,
) -> Iterator[T]:
    """Reads images and yields what is made of each, in their order.

    Args:
        root: where they are; it is read by this thread alone.
        items: the images.
        make: is called in the other threads, or in this one if that is all; a BadImageError says that an image is broken.
        errors: takes what is wrong with the broken ones, by path.
        threads: their number; None: as many as suit the machine.
    """

    def attempt(item: Item, image: bytes) -> T | BadImageError:
        try:
            return make(item, image)
        except BadImageError as error:
            return _words_of(error)

    with contextlib.ExitStack() as stack:
        # where others have the other CPUs, a second thread would only take turns with this one
        run = map if threads == 1 else stack.enter_context(ThreadPoolExecutor(threads)).map
        for chunk in _chunks(root, items, errors):
            made = run(attempt, *zip(*chunk, strict=True))
            for (item, _), found in zip(chunk, made, strict=True):
                if isinstance(found, BadImageError):
                    errors[item.path] = found
                else:
                    yield found
            chunk.clear()  # before the next is read


def _chunks(
    root: Readable, items: Sequence[Item], errors: dict[str, BadImageError]
) -> Iterator[list[tuple[Item, bytes]]]:
    """Yields the items that can be read with their bytes, as many at a time as may be in memory together."""
    chunk, held = list[tuple[Item, bytes]](), 0
    root.announce([item.path for item in items])
    for item in items:
        try:
            chunk.append((item, root.read(item.path)))
        except BadImageError as error:
            errors[item.path] = _words_of(error)
            continue
        held += len(chunk[-1][1])
        if len(chunk) == CHUNK or held >= HELD_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _words_of(error: BadImageError) -> BadImageError:
    """Returns the error without its traceback, through whose frames it would hold the image's bytes."""
    return BadImageError(str(error), error.problem)


@dataclass(frozen=True)
class PixelSums:
    """Some images whose pixels are summed, few enough to be sent to another process."""

    root: Readable
    items: tuple[Item, ...]
    image_size: int

    def __call__(self, threads: int | None = 1) -> Sums:
        """Returns the sums; broken images are left out."""

        def sums(item: Item, image: bytes) -> tuple[np.ndarray, np.ndarray]:
            pixels_CP = decode_canvas(image, self.image_size, item.path).reshape(3, -1).astype(np.int64)
            return pixels_CP.sum(1), (pixels_CP**2).sum(1)

        sums_C, squares_C, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
        for of_image_C, squares_of_image_C in decoded(self.root, self.items, sums, {}, threads):
            sums_C += of_image_C
            squares_C += squares_of_image_C
            count += 1
        return sums_C, squares_C, count


def in_this_process(pixels: PixelSums) -> Iterator[Sums]:
    """Sums the pixels here."""
    yield pixels(None)


def probe(
    root: Readable,
    keys: Sequence[str],
    paths: Sequence[str],
    seed: int,
    summed: Callable[[PixelSums], Iterable[Sums]] = in_this_process,
) -> _Probed:
    """Returns image size, mean and std of a keyed sample of images.

    The size is the median short side, at most 224. Images are read twice, for their headers and for their pixels: together
    they may be larger than memory. Broken ones are left to the reading of all, which names every one. ``summed`` sums the
    pixels of all images, in parts if it likes.
    """
    order = keyed_order(keys, np.arange(len(keys)), seed, "probe")
    probed = [paths[i] for i in np.sort(order[:PROBED])]  # in the order in which they are stored
    items = [Item(path, key="", ext="", label=0, attribute=-1) for path in probed]

    def short_side(item: Item, image: bytes) -> tuple[Item, int]:
        return item, min(size_in_header(image, item.path))

    found = list(decoded(root, items, short_side, {}))
    if not found:
        return LARGEST_IMAGE_SIZE, (0.5,) * 3, (0.5,) * 3
    image_size = max(1, min(int(np.median([side for _, side in found])), LARGEST_IMAGE_SIZE))
    # sums of integers: the same numbers in any order and on any machine
    parts = list(summed(PixelSums(root, tuple(item for item, _ in found), image_size)))
    count = sum(part[2] for part in parts) * image_size**2
    if not count:  # all have changed since
        return image_size, (0.5,) * 3, (0.5,) * 3
    mean_C = np.sum([part[0] for part in parts], axis=0) / count
    squares_C = np.sum([part[1] for part in parts], axis=0) / count
    std_C = np.sqrt(np.maximum(squares_C - mean_C**2, 1.0))  # at least one grey level, so it can divide
    return image_size, _rounded(mean_C), _rounded(std_C)


def _rounded(values_C: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(x) / 255.0, 4) for x in values_C)
