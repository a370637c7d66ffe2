"""What the columns of classes by attributes are: attributes by name, or where classes have their own, by their rank there.

Breeds of cats are no attributes of dogs: a column for each name would be empty in all other rows.
Shapes: C classes, A attributes, K columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltcore.evaluation.pairs import Ints
from ltcore.reporting.split_counts import SplitCounts, by_size

MAX_COLUMNS = 10
_RANKS = ("majority", "second", "third")


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a grid."""

    titles: tuple[str, ...]
    """() where rows are plain examples."""
    attributes_CK: Ints
    """Attribute of each class and column; -1 where the class has none there."""
    by_rank: bool = False
    """Whether the attributes of a column are others in each class."""
    left_out: str = ""
    """Which attributes are shown, where these are not all."""

    def counts_of(self, counts_CA: Ints) -> Ints:
        """Returns the images [C, K] of each column."""
        counts_CK = np.take_along_axis(counts_CA, np.maximum(self.attributes_CK, 0), axis=1)
        return np.where(self.attributes_CK >= 0, counts_CK, 0)


def without_attributes(num_classes: int) -> Columns:
    """Returns no columns."""
    return Columns((), np.zeros((num_classes, 0), np.int64))


def grid_columns(
    first: SplitCounts, all_counts: Sequence[SplitCounts], names: Sequence[str], classes: Sequence[int]
) -> Columns:
    """Returns the columns for some classes, the same for all splits: all attributes or the most frequent, by id.

    Where half of the cells or more would be empty in every split, columns are ranks: the attributes that a class has images
    of in any split, by its images in ``first``, of equal ones the lower id first.
    """
    if first.counts_CA is None:
        return without_attributes(len(first.counts_C))
    there_CA = np.zeros(first.counts_CA.shape, bool)
    for counts in all_counts:
        there_CA |= False if counts.counts_CA is None else counts.counts_CA > 0
    shown = sorted(by_size(first.counts_CA.sum(0))[:MAX_COLUMNS])
    there = there_CA[np.ix_(list(classes), shown)]
    if 2 * np.count_nonzero(there) > there.size:
        left_out = f"the {MAX_COLUMNS} most frequent of {len(names):,} attributes" if len(shown) < len(names) else ""
        attributes_CK = np.broadcast_to(shown, (len(there_CA), len(shown)))
        return Columns(tuple(names[a] for a in shown), attributes_CK, left_out=left_out)
    own = int(there_CA.sum(1).max())
    order_CK = np.argsort(-np.where(there_CA, first.counts_CA, -1), axis=1, kind="stable")[:, : min(own, MAX_COLUMNS)]
    attributes_CK = np.where(np.take_along_axis(there_CA, order_CK, axis=1), order_CK, -1)
    titles = tuple(_RANKS[k] if k < len(_RANKS) else f"{k + 1}th" for k in range(attributes_CK.shape[1]))
    return Columns(
        titles, attributes_CK, True, f"up to {MAX_COLUMNS} attributes of a class" if own > MAX_COLUMNS else ""
    )
