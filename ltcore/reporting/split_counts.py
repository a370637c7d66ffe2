"""How many images each split of a data set has, by class and by attribute."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltcore.evaluation.pairs import AttributeCounts, Ints
from ltcore.evaluation.protocols import TRAIN_BALANCED, ordered_splits

if TYPE_CHECKING:
    from ltcore.data.shards.reader import ShardStore

MAX_CELLS = 20_000_000
"""Of a table of classes by attributes; data with more count as data without attributes."""


@dataclass(frozen=True)
class SplitCounts:
    """The images of one split."""

    split: str
    counts_C: Ints
    """By class."""
    counts_CA: Ints | None
    """By class and attribute; None where no image has a known attribute."""

    @property
    def num_images(self) -> int:
        """Returns how many there are."""
        return int(self.counts_C.sum())

    @property
    def num_unknown(self) -> int:
        """Returns how many have no known attribute."""
        return self.num_images - int(0 if self.counts_CA is None else self.counts_CA.sum())


def count_split(store: ShardStore, split: str) -> SplitCounts:
    """Counts the images of a split. Raises DataError where there is no such split or its indexes cannot be read."""
    store.manifest.split(split)
    counts_C = np.array(store.manifest.class_counts[split], np.int64)
    num_classes, num_attributes = len(counts_C), len(store.manifest.attributes)
    if not num_attributes or num_classes * num_attributes > MAX_CELLS:
        return SplitCounts(split, counts_C, None)
    counts = AttributeCounts.of(store.labels(split), store.attributes(split), num_classes, num_attributes)
    counts_CA = counts.table_CA()
    return SplitCounts(split, counts_C, counts_CA if counts_CA.any() else None)


def reading_order(splits: Collection[str], train_split: str = "train") -> list[str]:
    """Sorts splits: those of training, of which the named one is first, validation, tests as in tables of tests."""
    first = [split for split in (train_split, "train", TRAIN_BALANCED, "val") if split in splits]
    return [*dict.fromkeys(first), *ordered_splits(split for split in splits if split not in first)]


def by_size(counts_C: Sequence[int] | Ints) -> list[int]:
    """Returns the classes, the largest first, and of equal ones the lower id."""
    return np.argsort(-np.asarray(counts_C), kind="stable").tolist()


def rank_counts(train_CA: Ints, counts_CA: Ints) -> tuple[int, int, int]:
    """Counts images by the rank of their attribute within the class: majority, second, rare.

    Ranks are those of the training counts ``train_CA`` (``AttributeRanks``). Classes without a known attribute in training
    have no ranks, so their images are left out.
    """
    from ltcore.evaluation.attributes import AttributeRanks  # imports torch

    counts = AttributeCounts.of_table(counts_CA)
    ranks_P = AttributeRanks(AttributeCounts.of_table(train_CA)).of(counts.pairs)
    majority, second, rare = (int(counts.counts_P[ranks_P == rank].sum()) for rank in range(3))
    return majority, second, rare
