"""Data sets whose images can be read in any order, made shard by shard: by several processes, and so that they continue."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ltcore.data.datasets.dataset import Dataset
from ltcore.data.datasets.image_folder import ImageRows, Item
from ltcore.data.datasets.image_root import Divisible, Files
from ltcore.data.datasets.longtail import IntArray, hash_order
from ltcore.data.datasets.shard_task import SHARDS, Broken, ShardTask, described
from ltcore.data.datasets.workspace import (
    Bar,
    Engine,
    OnProgress,
    broken_error,
    finish,
    keep_broken,
    kept_broken,
    workspace,
    write_shards,
)
from ltcore.data.shards.manifest import Manifest
from ltcore.data.shards.publish import refuse_occupied
from ltcore.data.shards.reencode import Reencode
from ltcore.data.shards.source import Source
from ltcore.data.shards.writer import check_source, shard_spans
from ltcore.errors import DataError
from ltcore.text import counted


@dataclass(frozen=True)
class Split:
    """The images of one split, each of which can be read alone."""

    root: Divisible
    items: Sequence[Item]


def divided(source: Source) -> dict[str, Split] | None:
    """Returns the images by split; None where they can only be read one after the other."""
    splits = dict[str, Split]()
    for name, rows in source.splits.items():
        if not isinstance(rows, ImageRows) or not isinstance(rows.root, Files):
            return None
        splits[name] = Split(rows.root, rows.items)
    return splits


@dataclass(frozen=True)
class Plan:
    """What is in which shard: in the order of ``writer.write_dataset``, which gives the same bytes."""

    source: Source
    splits: Mapping[str, Split]
    orders: Mapping[str, IntArray]
    """Split -> positions of its images in the order of the shards."""
    shard_size: int
    reencode: Reencode | None

    @property
    def total(self) -> int:
        """Returns the images of all splits."""
        return sum(map(len, self.orders.values()))

    def tasks(self, folder: Path, uri: str) -> Iterator[ShardTask]:
        """Yields what writes each shard into the workspace of the data set ``uri``, split by split."""
        sizes = len(self.source.classes), len(self.source.attributes)
        for name, split in self.splits.items():
            order_N = self.orders[name]
            for number, span in enumerate(shard_spans(len(order_N), self.shard_size)):
                items = tuple(split.items[n] for n in order_N[span.start : span.stop].tolist())
                part = split.root.part([item.path for item in items])
                yield ShardTask(part, items, folder, uri, name, number, span.start, *sizes, self.reencode)

    def tags(self) -> dict[str, tuple[IntArray, IntArray]]:
        """Returns split -> label and attribute of every sample, in the order of the shards."""
        found = dict[str, tuple[IntArray, IntArray]]()
        for name, split in self.splits.items():
            count = len(split.items)
            labels_N = np.fromiter((item.label for item in split.items), np.int64, count)
            attributes_N = np.fromiter((item.attribute for item in split.items), np.int64, count)
            found[name] = labels_N[self.orders[name]], attributes_N[self.orders[name]]
        return found


def make_plan(source: Source, seed: int, shard_size: int, reencode: Reencode | None) -> Plan:
    """Orders the images of a divided source. Raises DataError where two in a split have one key."""
    if reencode is not None:
        source = reencode.described(source)
    check_source(source, source.splits, shard_size)
    splits, orders = divided(source) or {}, dict[str, IntArray]()
    for name, split in splits.items():
        keys = [item.key for item in split.items]
        orders[name] = hash_order(keys, np.arange(len(keys)), seed)
        for first, second in itertools.pairwise(orders[name].tolist()):
            if keys[first] == keys[second]:
                raise DataError(
                    f"{source.name}/{name}: sample {keys[first]!r} comes twice; keys must be unique in a split."
                )
    return Plan(source, splits, orders, shard_size, reencode)


def write_divided(
    dataset: Dataset,
    source: Source,
    uri: str,
    identity: Any,
    *,
    shard_size: int,
    reencode: Reencode | None,
    engine: Engine,
    bar: Bar,
    progress: OnProgress | None,
) -> Manifest:
    """Makes a data set at ``uri`` in place of an earlier one there, or continues an interrupted making of it.

    Args:
        dataset: chooses the images again where some of them are broken.
        source: what it has chosen, which is ``divided``.
        uri: folder or object-store prefix.
        identity: all that the images and their splits depend on, as far as json can hold it.
        shard_size: most images in one tar.
        reencode: how images are encoded anew; None: the files go into the shards as they are.
        engine: writes the shards.
        bar: shows how far it is.
        progress: told what happens, a line each.

    Errors are those of ``writer.write_dataset``; BrokenImagesError names more broken images than are allowed.
    """
    seed, most = dataset.cfg.subset_seed, dataset.cfg.max_bad_samples
    plan = make_plan(source, seed, shard_size, reencode)
    where = next(iter(plan.splits.values())).root.where
    refuse_occupied(uri)
    words = [identity, shard_size, asdict(reencode) if reencode is not None else None]
    with workspace(uri, words, progress) as folder, engine(plan.total) as run:
        broken, told = kept_broken(folder), progress
        while len(broken) <= most:
            if broken:
                plan = make_plan(_without(dataset, broken, progress), seed, shard_size, reencode)
            with bar(plan.source.name, plan.total) as advance:
                written = write_shards(plan.tasks, folder, uri, run, advance=advance, progress=told)
            if not written.broken:
                describe = partial(described, plan.source, plan.tags(), written, folder / SHARDS, seed)
                return finish(folder, uri, describe, progress)
            broken, told = broken | written.broken, None
            keep_broken(folder, broken)
    raise broken_error(where, broken)


def _without(dataset: Dataset, broken: Broken, progress: OnProgress | None) -> Source:
    """Chooses the images again, as if the broken ones were not there."""
    if progress:
        progress(f"{dataset.name}: writing again without {counted(len(broken), 'broken image')}")
    dataset.broken = {path: broken[path][1] for path in sorted(broken)}
    return dataset.source()
