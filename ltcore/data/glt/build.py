"""From images with attributes to the shards of a benchmark: a plan, one task for each shard, and the manifest at the end.

The plan alone decides what is in which shard, so any number of processes writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltcore.data.datasets.glt import GltSizes, glt_splits
from ltcore.data.datasets.image_folder import PixelSums, Sums, in_this_process, probe
from ltcore.data.datasets.longtail import IntArray, hash_order
from ltcore.data.datasets.shard_task import ShardTask, Written, described
from ltcore.data.datasets.workspace import Run, here
from ltcore.data.glt.choices import GltChoices
from ltcore.data.glt.pool import Pool
from ltcore.data.shards.manifest import Manifest
from ltcore.data.shards.reencode import Reencode
from ltcore.data.shards.remarks import ATTRIBUTE_COUNTS
from ltcore.data.shards.source import Description
from ltcore.data.shards.writer import shard_spans
from ltcore.shots import shot_rule_of

SUMMED = 64
"""Images whose pixels one task sums."""


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

    def tasks(self, folder: Path, uri: str) -> Iterator[ShardTask]:
        """Yields what writes each shard into the workspace of the data set ``uri``, split by split."""
        for split, positions_n in self.splits.items():
            for number, span in enumerate(shard_spans(len(positions_n), self.shard_size)):
                items = tuple(self.pool.items.take(positions_n[span.start : span.stop]))
                part = self.pool.root.part([item.path for item in items])
                sizes = len(self.pool.classes), len(self.pool.attributes)
                yield ShardTask(part, items, folder, uri, split, number, span.start, *sizes, self.reencode)


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


def manifest(plan: Plan, run: Run, written: Written, folder: Path, provenance: Mapping[str, Any]) -> Manifest:
    """Describes the data set, of which all shards are written into ``folder``, and writes the tables of labels there.

    Image size, mean and std are those of training images, measured by tasks of ``run``.
    """
    pool = plan.pool
    train = pool.items.take(plan.splits["train"])

    def summed(pixels: PixelSums) -> Iterator[Sums]:
        if run is here:
            yield from in_this_process(pixels)
            return
        starts = range(0, len(pixels.items), SUMMED)
        parts = (
            PixelSums(pool.root.part([item.path for item in items]), items, pixels.image_size)
            for items in (pixels.items[first : first + SUMMED] for first in starts)
        )
        yield from (sums for _, sums in run(parts, PixelSums.__call__))

    image_size, mean, std = probe(pool.root, train.keys, train.paths, plan.seed, summed)
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
    tags = {split: (pool.labels[chosen_n], pool.attribute_ids[chosen_n]) for split, chosen_n in plan.splits.items()}
    return described(description, tags, written, folder, plan.seed)
