"""Which images show what is unbalanced in a split: one for each class and attribute, with how many there are.

The image of a cell is its first one in the order of the shards. That order is random by a seed, so the choice is fair and
stays the same, and all of them lie in few shards, which matters where shards are downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltcore.evaluation.pairs import Ints
from ltcore.reporting.grid_columns import Columns
from ltcore.reporting.split_counts import SplitCounts, by_size
from ltcore.shots import SHOT_GROUPS

if TYPE_CHECKING:
    from ltcore.data.shards.manifest import Manifest
    from ltcore.data.shards.reader import ShardStore

MAX_ROWS = 10
EXAMPLES = 6
"""Images of a class where there are no attributes."""


@dataclass(frozen=True)
class GridCell:
    """Images of one class with one attribute; without attributes, one image."""

    count: int
    index: int | None
    """Of the image to show inside its split; None where there is none."""
    name: str = ""
    """Its attribute, where the columns have no names of attributes."""


@dataclass(frozen=True)
class GridRow:
    """One class."""

    label: int
    count: int
    """Images of the class in this split."""
    cells: tuple[GridCell, ...]


@dataclass(frozen=True)
class SampleGrid:
    """Images of a split: a row per class, a column per attribute or rank of one."""

    split: str
    titles: tuple[str, ...]
    """Of the columns; () where rows are plain examples."""
    rows: tuple[GridRow, ...]

    @property
    def most(self) -> int:
        """Returns the largest count of a cell; without attributes, of a class; at least 1."""
        counts = (cell.count for row in self.rows for cell in row.cells) if self.titles else self.class_counts
        return max([1, *counts])

    def share(self, count: int) -> float:
        """Returns how strongly a count is tinted or how long its bar is, in [0, 1]; tints of cells are logarithmic."""
        return math.log1p(count) / math.log1p(self.most) if self.titles else count / self.most

    @property
    def class_counts(self) -> list[int]:
        """Returns the images of each row's class."""
        return [row.count for row in self.rows]

    @property
    def indexes(self) -> list[int]:
        """Returns the images to show, row by row."""
        return [cell.index for row in self.rows for cell in row.cells if cell.index is not None]


def shown_classes(counts_C: Ints, groups: Sequence[str]) -> list[int]:
    """Returns the classes that rows are for, the largest first: all of them, or some from each shot group.

    Of a group, they are spread evenly over its classes by size, with the largest and the smallest.
    """
    order = by_size(counts_C)
    if len(order) <= MAX_ROWS:
        return order
    members = {group: [c for c in order if groups[c] == group] for group in SHOT_GROUPS}
    places = dict.fromkeys(members, 0)
    while sum(places.values()) < MAX_ROWS:
        free = [group for group in SHOT_GROUPS if places[group] < len(members[group])]
        places[min(free, key=lambda group: places[group])] += 1
    chosen = {
        of_group[at]
        for group, of_group in members.items()
        for at in np.linspace(0, len(of_group) - 1, places[group]).round().astype(int).tolist()
    }
    return [c for c in order if c in chosen]


def shown_words(manifest: Manifest, num_classes: int, columns: Columns) -> str:
    """Says which classes and attributes are shown, where these are not all, and what columns of ranks are; else ''."""
    parts = []
    if num_classes < len(manifest.classes):
        parts.append(f"{num_classes} of {len(manifest.classes):,} classes, some from each shot group")
    if columns.left_out:
        parts.append(columns.left_out)
    if columns.by_rank:
        parts.append("columns are ranks of attributes in the class")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def sample_grid(store: ShardStore, counts: SplitCounts, classes: Sequence[int], columns: Columns) -> SampleGrid:
    """Returns the grid of a split for the given classes and columns.

    Where the split has no attributes, a row is some images of its class.
    """
    labels_N = store.labels(counts.split)
    if counts.counts_CA is None or not columns.titles:
        members = {c: np.flatnonzero(labels_N == c)[:EXAMPLES].tolist() for c in classes}
        rows = [GridRow(c, int(counts.counts_C[c]), tuple(GridCell(1, at) for at in members[c])) for c in classes]
        return SampleGrid(counts.split, (), tuple(rows))
    first_of = _first_of_cells(labels_N, store.attributes(counts.split), classes)
    names = store.manifest.attributes
    rows = []
    for c in classes:
        own = [a for a in columns.attributes_CK[c].tolist() if a >= 0]
        cells = (
            GridCell(int(counts.counts_CA[c, a]), first_of.get((c, a)), names[a] if columns.by_rank else "")
            for a in own
        )
        rows.append(GridRow(c, int(counts.counts_C[c]), tuple(cells)))
    return SampleGrid(counts.split, columns.titles, tuple(rows))


def _first_of_cells(labels_N: Ints, attributes_N: Ints, classes: Sequence[int]) -> dict[tuple[int, int], int]:
    """Returns (class, attribute) -> index of its first sample, for some of the classes."""
    found: dict[tuple[int, int], int] = {}
    for index in np.flatnonzero(np.isin(labels_N, classes)).tolist():
        found.setdefault((int(labels_N[index]), int(attributes_N[index])), index)
    return found
