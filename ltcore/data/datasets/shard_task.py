"""One shard of images that can be read in any order: written by any process, and found whole by whoever continues.

A shard counts as whole once its record lies beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ltcore import storage
from ltcore.data.datasets.image_folder import Item, decoded, sound_sample
from ltcore.data.datasets.image_root import Readable
from ltcore.data.datasets.longtail import IntArray
from ltcore.data.shards.kept import keep, kept
from ltcore.data.shards.manifest import Manifest, Shard, Split
from ltcore.data.shards.reencode import Reencode
from ltcore.data.shards.source import Description, Sample
from ltcore.data.shards.writer import manifest_of, problem_of, write_labels, write_shard
from ltcore.errors import BadImageError, DataError, StorageError
from ltcore.stores import SPACE

SHARDS, RECORDS = "shards", "records"
"""Folders of a workspace."""
Broken = dict[str, tuple[str, str]]
"""Path -> message and problem of an image that cannot be decoded."""


@contextlib.contextmanager
def as_storage_error(uri: str) -> Iterator[None]:
    """Makes what a disk answers an error about the data set that is written there; people know no workspace."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error}. {SPACE}.") from error


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written, small enough to be sent to another process."""

    root: Readable
    items: tuple[Item, ...]
    folder: Path
    """The workspace."""
    uri: str
    """Where the data set will be, for messages."""
    split: str
    number: int
    first_index: int
    num_classes: int
    num_attributes: int
    reencode: Reencode | None

    @property
    def place(self) -> Path:
        """Returns where the record of the finished shard lies."""
        return self.folder / RECORDS / f"{self.split}-{self.number:05d}.json"

    @property
    def identity(self) -> str:
        """Returns a hash of what the plan puts into the shard."""
        rows = [(item.path, item.key, item.ext, item.label, item.attribute) for item in self.items]
        return hashlib.sha256(json.dumps([self.first_index, rows]).encode()).hexdigest()

    def finished(self) -> Shard | None:
        """Returns the shard where it has been written whole; its bytes are read and compared with their checksums."""
        if (record := kept(self.place, self.identity)) is None:
            return None
        shard = Shard(**record)
        files = ((shard.path, shard.sha256), (shard.index_path, shard.index_sha256))
        try:
            whole = all(_sha256(self.folder / SHARDS / name) == digest for name, digest in files)
        except DataError:
            return None
        return shard if whole else None

    def __call__(self, threads: int | None = 1) -> tuple[Shard | None, Broken]:
        """Writes shard and record. Returns the images that cannot be decoded instead, where there are any.

        ``threads`` decode; None: as many as suit a machine on which no other process does so.
        """
        errors: dict[str, BadImageError] = {}
        place, samples = self.folder / SHARDS, partial(self._samples, errors, threads)
        with as_storage_error(self.uri):
            shard = write_shard(samples, place, self.split, self.number, self.first_index)
        if errors:
            return None, {path: (str(error), error.problem) for path, error in errors.items()}
        keep(self.place, self.identity, asdict(shard))
        return shard, {}

    def _samples(self, errors: dict[str, BadImageError], threads: int | None) -> Iterator[Sample]:
        for sample in decoded(self.root, self.items, self._sample, errors, threads):
            if problem := problem_of(sample, self.num_classes, self.num_attributes):
                raise DataError(f"{self.root.where}: sample {sample.key!r} {problem}.")
            yield sample

    def _sample(self, item: Item, image: bytes) -> Sample:
        where = f"{self.root.where}: {item.path}"
        if self.reencode is None:
            return sound_sample(item, image, where)
        return self.reencode(Sample(item.key, image, item.ext, item.label, item.attribute), where)


def _sha256(path: Path) -> str:
    with storage.open_file(str(path)) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass
class Written:
    """What has been written so far."""

    shards: dict[str, dict[int, Shard]] = field(default_factory=dict)
    """Split -> number of the shard -> shard."""
    broken: Broken = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """Returns the names of all files of the shards."""
        shards = [shard for by_number in self.shards.values() for shard in by_number.values()]
        return {name for shard in shards for name in (shard.path, shard.index_path)}

    def add(self, task: ShardTask, shard: Shard | None, broken: Broken) -> None:
        """Takes the result of one task."""
        if shard is not None:
            self.shards.setdefault(task.split, {})[task.number] = shard
        self.broken |= broken


def described(
    description: Description,
    tags: Mapping[str, tuple[IntArray, IntArray]],
    written: Written,
    folder: Path,
    seed: int,
) -> Manifest:
    """Describes a data set whose shards are all written into ``folder``, and writes the tables of labels there.

    ``tags`` are label and attribute of every sample of each split, in the order of its shards.
    """
    splits, counts = {}, {}
    for split, (labels_N, attributes_N) in tags.items():
        shards = tuple(shard for _, shard in sorted(written.shards.get(split, {}).items()))
        splits[split] = Split(shards, write_labels(folder, split, labels_N, attributes_N, description))
        counts[split] = np.bincount(labels_N, minlength=len(description.classes))
    return manifest_of(description, splits, counts, seed)
