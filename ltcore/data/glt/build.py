"""From images with attributes to the shards of a benchmark: a plan, one task for each shard, and the manifest at the end.

The plan alone decides what is in which shard, so any number of processes writes the same bytes. A shard counts as whole once
its record lies beside it; a build that was interrupted continues with the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ltcore import storage
from ltcore.data.datasets.glt import GltSizes, glt_splits
from ltcore.data.datasets.image_folder import Item, probe
from ltcore.data.datasets.image_root import Readable
from ltcore.data.datasets.longtail import IntArray, hash_order
from ltcore.data.glt.choices import GltChoices
from ltcore.data.glt.kept import keep, kept
from ltcore.data.glt.pool import Pool
from ltcore.data.images.decode import decode_image, extension_of
from ltcore.data.shards.manifest import Manifest, Shard, Split
from ltcore.data.shards.reencode import Reencode
from ltcore.data.shards.remarks import ATTRIBUTE_COUNTS
from ltcore.data.shards.source import Description, Sample
from ltcore.data.shards.writer import manifest_of, problem_of, shard_spans, write_labels, write_shard
from ltcore.errors import BadImageError, DataError
from ltcore.shots import shot_rule_of

Broken = dict[str, tuple[str, str]]
"""Path -> message and problem of an image that cannot be decoded."""


@dataclass(frozen=True)
class Plan:
    """What is in which shard."""

    pool: Pool
    sizes: GltSizes
    splits: Mapping[str, IntArray]
    """Split -> positions in the pool, in the order of its shards."""
    seed: int
    shard_size: int
    reencode: Reencode | None

    @property
    def overlap(self) -> int:
        """Returns how many images are in both training splits."""
        return len(np.intersect1d(self.splits["train"], self.splits.get("train_cbl", ())))

    @property
    def total(self) -> int:
        """Returns the images of all splits; those in both training splits count twice."""
        return sum(map(len, self.splits.values()))

    def counts(self, split: str) -> IntArray:
        """Returns [C, A] images of each class and attribute."""
        return self.pool.counts(self.splits[split])

    def plain_counts(self) -> dict[str, list[Any]]:
        """Returns split -> by class, the images of every attribute; by name where classes have attributes of their own.

        A table of classes by attributes is mostly empty there, and too large for a manifest.
        """
        there_CA = self.pool.counts() > 0
        if there_CA.all():
            return {split: self.counts(split).tolist() for split in self.splits}
        names = self.pool.attributes
        own = [np.flatnonzero(there_A).tolist() for there_A in there_CA]
        return {
            split: [
                {names[a]: int(counts_A[a]) for a in ids} for ids, counts_A in zip(own, self.counts(split), strict=True)
            ]
            for split in self.splits
        }

    def tasks(self, folder: Path) -> Iterator[ShardTask]:
        """Yields what writes each shard, split by split."""
        for split, positions_n in self.splits.items():
            for number, span in enumerate(shard_spans(len(positions_n), self.shard_size)):
                items = tuple(self.pool.items.take(positions_n[span.start : span.stop]))
                part = self.pool.root.part([item.path for item in items])
                sizes = len(self.pool.classes), len(self.pool.attributes)
                yield ShardTask(part, items, folder, split, number, span.start, *sizes, self.reencode)


def make_plan(pool: Pool, sizes: GltSizes, choices: GltChoices) -> Plan:
    """Chooses the images of every split, and their order; the same images and choices give the same plan."""
    keys = pool.keys
    picks = glt_splits(
        keys, pool.labels, pool.attribute_ids, sizes, num_attributes=len(pool.attributes), seed=choices.seed
    )
    splits = {
        split: hash_order(keys, chosen_n2[:, 0], choices.seed) for split, chosen_n2 in picks.items() if len(chosen_n2)
    }
    return Plan(pool, sizes, splits, choices.seed, choices.shard_size, choices.reencode)


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written, small enough to be sent to another process."""

    root: Readable
    items: tuple[Item, ...]
    folder: Path
    split: str
    number: int
    first_index: int
    num_classes: int
    num_attributes: int
    reencode: Reencode | None

    @property
    def place(self) -> Path:
        """Returns where the record of the finished shard lies."""
        return self.folder / "records" / f"{self.split}-{self.number:05d}.json"

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
            whole = all(_sha256(self.folder / "shards" / name) == digest for name, digest in files)
        except DataError:
            return None
        return shard if whole else None

    def __call__(self) -> tuple[Shard | None, Broken]:
        """Writes shard and record. Returns the images that cannot be decoded instead, where there are any."""
        broken: Broken = {}
        shard = write_shard(self._samples(broken), self.folder / "shards", self.split, self.number, self.first_index)
        if broken:
            return None, broken
        keep(self.place, self.identity, asdict(shard))
        return shard, {}

    def _samples(self, broken: Broken) -> Iterator[Sample]:
        self.root.announce([item.path for item in self.items])
        for item in self.items:
            try:
                sample = self._sample(item, f"{self.root.where}: {item.path}")
            except BadImageError as error:
                broken[item.path] = str(error), error.problem
                continue
            if problem := problem_of(sample, self.num_classes, self.num_attributes):
                raise DataError(f"{self.root.where}: {item.path}: {problem}.")
            yield sample

    def _sample(self, item: Item, where: str) -> Sample:
        """Reads an image, and decodes it to see whether that can be done."""
        image = self.root.read(item.path)
        if self.reencode is not None:
            return self.reencode(Sample(item.key, image, item.ext, item.label, item.attribute), where)
        decode_image(image, where)
        return Sample(item.key, image, item.ext or extension_of(image), item.label, item.attribute)


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


def manifest(plan: Plan, written: Written, folder: Path, provenance: Mapping[str, Any]) -> Manifest:
    """Describes the data set, of which all shards are written into ``folder``, and writes the tables of labels there.

    Image size, mean and std are those of training images.
    """
    pool = plan.pool
    train = pool.items.take(plan.splits["train"])
    image_size, mean, std = probe(pool.root, train.keys, train.paths, plan.seed)
    description = Description(
        name=f"{pool.name}-glt",
        classes=pool.classes,
        attributes=pool.attributes,
        image_size=image_size,
        mean=mean,
        std=std,
        shot_rule=shot_rule_of(plan.splits),
        provenance={**provenance, ATTRIBUTE_COUNTS: plan.plain_counts()},
    )
    if plan.reencode is not None:
        description = plan.reencode.described(description)
    splits = {}
    for split, positions_n in plan.splits.items():
        shards = tuple(shard for _, shard in sorted(written.shards.get(split, {}).items()))
        tags = pool.labels[positions_n], pool.attribute_ids[positions_n]
        splits[split] = Split(shards, write_labels(folder, split, *tags, description))
    counts = {split: plan.counts(split).sum(1) for split in plan.splits}
    return manifest_of(description, splits, counts, plan.seed)
