"""What was found in all tars of others together: classes, splits, and the samples that belong to none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import SPLITS
from ltcore.data.datasets.image_folder import Item, carve_splits, probe
from ltcore.data.datasets.image_root import AtHand
from ltcore.data.datasets.longtail import IntArray, tail_name
from ltcore.data.datasets.tar_classes import Classes
from ltcore.data.datasets.tar_files import TarFile
from ltcore.data.datasets.tar_samples import Row, TarRows
from ltcore.data.shards.remarks import BROKEN
from ltcore.data.shards.source import Indexed, IndexedTar, Sample, Source, safe_key
from ltcore.data.shards.writer import INDEX_SCHEMA
from ltcore.errors import DataError
from ltcore.text import counted, printable

LISTED = 10
"""Bad samples that a message names."""


@dataclass(frozen=True)
class ReadTar:
    """A tar and its samples, or why it cannot be read."""

    file: TarFile
    sha256: str
    rows: TarRows
    broken: str = ""


@dataclass(frozen=True)
class Collection:
    """The samples of all tars, by their position in one long list, and what they are used for."""

    tars: Sequence[ReadTar]
    rows: Sequence[Row]
    keys: Sequence[str]
    labels_N: IntArray
    tar_N: IntArray
    """Which tar a sample is in."""
    splits: dict[str, IntArray]
    """Positions, ascending."""
    fields: dict[str, Any]
    """Of the description."""

    def indexed(self) -> Indexed:
        """Returns the samples of each split by tar."""
        return Indexed(splits={split: self._tars(positions) for split, positions in self.splits.items()}, **self.fields)

    def source(self) -> Source:
        """Returns the samples with their bytes, to be written into shards."""
        return Source(splits={split: _Rows(self, found) for split, found in self.splits.items()}, **self.fields)

    def read(self, position: int) -> bytes:
        """Reads the encoded image of a sample."""
        row = self.rows[position]
        return self.tars[self.tar_N[position]].file.read(row.offset, row.size)

    def _tars(self, positions: IntArray) -> list[IndexedTar]:
        starts = np.flatnonzero(np.diff(self.tar_N[positions])) + 1  # positions ascend, and so do the tars
        return [self._tar(int(self.tar_N[part[0]]), part) for part in np.split(positions, starts) if len(part)]

    def _tar(self, number: int, positions: IntArray) -> IndexedTar:
        read = self.tars[number]
        file, rows = read.file, [self.rows[position] for position in positions]
        columns = {
            "key": [self.keys[position] for position in positions],
            "label": self.labels_N[positions],
            "attribute": np.full(len(positions), -1),
            **{name: [getattr(row, name) for row in rows] for name in ("ext", "offset", "size", "crc32")},
        }
        return IndexedTar(
            base="" if file.unpacked else file.tar.base,
            path=file.unpacked.name if file.unpacked else file.tar.path,
            bytes=file.num_bytes,
            sha256=read.sha256,
            index=pa.table(columns, schema=INDEX_SCHEMA),
            unpacked=file.unpacked,
        )


@dataclass(frozen=True)
class _Rows:
    """One split, read while it is iterated."""

    collection: Collection
    positions: IntArray

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Sample]:
        for at in self.positions.tolist():
            key, label = safe_key(self.collection.keys[at]), int(self.collection.labels_N[at])
            yield Sample(key=key, image=self.collection.read(at), ext=self.collection.rows[at].ext, label=label)


def collect(
    name: str, tars: Sequence[ReadTar], classes: Classes, cfg: DataConfig, progress: Callable[[str], None]
) -> Collection:
    """Chooses classes and splits as for a folder of images, and leaves out bad samples.

    Where only ``train`` is given, a fifth of each class becomes the test; where there is no ``val``, ``carve`` makes one.
    Raises DataError where more than ``data.max_bad_samples`` are bad, or there is nothing to learn.
    """
    _refuse_copies(name, tars)
    given = {tar.file.tar.split for tar in tars}
    known = {
        row.label for tar in tars if "train" not in given or tar.file.tar.split == "train" for row in tar.rows.rows
    }
    names, positions = classes.chosen(known)
    rows, labels, tar_numbers, bad = [], [], [], dict[str, str]()
    for number, tar in enumerate(tars):
        bad |= {f"{tar.file.tar.path}: {key}": problem for key, problem in tar.rows.bad}
        for row in tar.rows.rows:
            if row.label in positions:
                rows.append(row)
                labels.append(positions[row.label])
                tar_numbers.append(number)
            else:
                bad[f"{tar.file.tar.path}: {row.key}"] = _unknown(row.label, classes)
    _check_bad(name, bad, cfg.max_bad_samples, len(rows), progress)
    if absent := len(classes.names) - len(names) if classes.names else 0:
        what = "a training image" if "train" in given else "an image"
        progress(f"{name}: left out {counted(absent, 'class')} of {classes.where} without {what}")
    if len(names) == 1 and "train" in given:
        raise DataError(f"{name}: all samples have one label, {names[0]!r}, so nothing can be learned.")
    keys, labels_N, tar_N = _unique_keys(rows, tar_numbers, tars), np.array(labels, np.int64), np.array(tar_numbers)
    split_of_tar = [SPLITS.index(tar.file.tar.split) for tar in tars]
    split_N = np.array(split_of_tar)[tar_N]
    splits = {split: np.flatnonzero(split_N == SPLITS.index(split)) for split in SPLITS if split in given}
    whole = Collection(tars, rows, keys, labels_N, tar_N, splits, {})
    return _described(whole, name, names, cfg, bad)


def _refuse_copies(name: str, tars: Sequence[ReadTar]) -> None:
    """Raises DataError for a tar that is there twice: its images would be in training and in the test."""
    seen: dict[str, ReadTar] = {}
    for tar in tars:
        if tar.rows.rows and (first := seen.setdefault(tar.sha256, tar)) is not tar:
            raise DataError(
                f"{name}: {first.file.tar.path} and {tar.file.tar.path} have the same content, so the same images would be in "
                "two splits. Leave one of them out."
            )


def _unknown(label: str, classes: Classes) -> str:
    where = f"is not in {classes.where}" if classes.names and not classes.has(label) else "no training sample has"
    return f"has the label {label[:40]!r}, which {where}"


def _check_bad(name: str, bad: Mapping[str, str], limit: int, good: int, progress: Callable[[str], None]) -> None:
    """Raises DataError where there are too many bad samples, or no others; says how many are left out."""
    listed = "; ".join(f"{where} {what}" for where, what in itertools.islice(bad.items(), LISTED))
    listed += f"; and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
    if not good:
        raise DataError(
            f"{name} has no sample with an image and a label"
            + (f": {listed}" if bad else "")
            + ". Expected members such as "
            "0.jpg and 0.cls (or 0.json, see data.label_key). A tar of class folders has to be unpacked first."
        )
    if len(bad) > limit:
        raise DataError(
            f"{name}: {len(bad):,} of {counted(good + len(bad), 'sample')} cannot be used: {listed}. Correct the tars, or "
            f"leave them out with data.max_bad_samples={len(bad)}."
        )
    if bad:
        progress(printable(f"{name}: left out {counted(len(bad), 'sample')} (data.max_bad_samples={limit}): {listed}"))


def _unique_keys(rows: Sequence[Row], tar_numbers: Sequence[int], tars: Sequence[ReadTar]) -> list[str]:
    """Returns the keys; where tars count anew, with the name of the tar before them."""
    keys = [row.key for row in rows]
    if len(set(keys)) == len(keys):
        return keys
    return [f"{tars[number].file.tar.path}/{key}" for number, key in zip(tar_numbers, keys, strict=True)]


def _described(
    whole: Collection, name: str, names: tuple[str, ...], cfg: DataConfig, bad: dict[str, str]
) -> Collection:
    """Returns the collection with its splits carved, and all that is known of it."""
    splits = {split: [_item(whole, at) for at in positions.tolist()] for split, positions in whole.splits.items()}
    if "train" in splits:
        splits, chosen = carve_splits(splits, names, cfg)
        full_name, probed = tail_name(name, cfg), splits["train"]
    else:
        chosen = {"test": "as given", "train": "none: for evaluation"}
        full_name, probed = name, list(itertools.chain(*splits.values()))
    keys, paths = [item.key for item in probed], [item.path for item in probed]
    image_size, mean, std = probe(_Readable(whole), keys, paths, cfg.subset_seed)
    fields = {
        "name": full_name,
        "classes": names,
        "image_size": image_size,
        "mean": mean,
        "std": std,
        "shot_rule": "count",
        "provenance": {"source": f"WebDataset tars of {name}", **chosen, **({BROKEN: bad} if bad else {})},
    }
    positions = {split: np.array([int(item.path) for item in items]) for split, items in splits.items() if items}
    return replace(whole, splits=positions, fields=fields)


def _item(whole: Collection, position: int) -> Item:
    return Item(str(position), whole.keys[position], whole.rows[position].ext, int(whole.labels_N[position]), -1)


@dataclass(frozen=True)
class _Readable(AtHand):
    """The images by their positions, as a folder gives them by their paths."""

    whole: Collection
    where: str = "sample"

    def read(self, path: str) -> bytes:
        return self.whole.read(int(path))
