"""What a report shows of the data that a run was trained and tested on: images by class and attribute, and histograms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltcore.data.shards.manifest import Manifest
from ltcore.errors import DataError
from ltcore.evaluation.protocols import TRAIN_LONG_TAILED
from ltcore.reporting.data_figures import histogram
from ltcore.reporting.grid_columns import grid_columns
from ltcore.reporting.pictures import Picture, Pictures
from ltcore.reporting.sample_grid import SampleGrid, sample_grid, shown_classes, shown_words
from ltcore.reporting.split_counts import SplitCounts, by_size, count_split, rank_counts, reading_order
from ltcore.reporting.svg import new_figure, style, to_svg
from ltcore.text import printable

if TYPE_CHECKING:
    from ltcore.data.shards.reader import ShardStore

IMAGE_PX = 64
"""Longest side of an image in a grid."""
FIGURE_PX = 330
"""Legible on a phone, and three beside each other elsewhere."""


@dataclass(frozen=True)
class CellView:
    """A cell of a grid; without attributes, an example."""

    count: int
    picture: Picture | None
    tint: float
    """Share of the color below the image, in [0, 1]."""
    name: str
    """Its attribute, where the columns have no names of attributes."""


@dataclass(frozen=True)
class RowView:
    """A class in a grid."""

    name: str
    group: str
    count: int
    bar: float
    """Length of its bar where there are no attributes, in [0, 1]."""
    cells: tuple[CellView, ...]


@dataclass(frozen=True)
class GridView:
    """Images of a split."""

    split: str
    images: int
    titles: tuple[str, ...]
    """Of the columns; () where rows are plain examples."""
    rows: tuple[RowView, ...]


@dataclass(frozen=True)
class DataSection:
    """The section of a page."""

    grids: tuple[GridView, ...]
    """Of training, and of the test in which attributes are balanced, or the first one."""
    caption: tuple[str, ...]
    """What is unbalanced in training, and how the test differs."""
    selection: str
    """Which classes and attributes are shown; '' for all."""
    histograms: tuple[tuple[str, str], ...]
    """(title, SVG) of each."""
    rank_shares: tuple[tuple[str, tuple[float, ...]], ...]
    """(split, shares of its images with the majority, the second and a rare attribute of their class)."""


def data_section(pictures: Pictures, train_split: str) -> DataSection | None:
    """Returns the section about the data; None where they cannot be read, which ``pictures.problem`` then explains."""
    if pictures.store is None:
        return None
    try:
        return _section(pictures, pictures.store, train_split)
    except DataError as error:
        pictures.give_up(error)
        return None


def _section(pictures: Pictures, store: ShardStore, train_split: str) -> DataSection:
    manifest = store.manifest
    order = [split for split in reading_order(manifest.splits, train_split) if manifest.split(split).num_samples]
    natural = TRAIN_LONG_TAILED if TRAIN_LONG_TAILED in order else train_split
    counts = {split: count_split(store, split) for split in dict.fromkeys([train_split, natural, *order])}
    train, ranking = counts[train_split], counts[natural]
    shown = [train, *(counts[split] for split in order if split.startswith("test"))][:2]
    classes = shown_classes(train.counts_C, manifest.shot_groups)
    columns = grid_columns(train, list(counts.values()), manifest.attributes, classes)
    grids = [sample_grid(store, each, classes, columns) for each in shown]
    return DataSection(
        tuple(_view(grid, of, pictures, manifest) for grid, of in zip(grids, shown, strict=True)),
        tuple(_caption(train, shown[1:], ranking)),
        shown_words(manifest, len(classes), columns),
        tuple(_histograms(list(counts.values()), manifest)),
        tuple(_rank_shares(ranking, list(counts.values()))),
    )


def _view(grid: SampleGrid, counts: SplitCounts, pictures: Pictures, manifest: Manifest) -> GridView:
    found = pictures.by_index(grid.split, grid.indexes, IMAGE_PX)
    rows = []
    for row in grid.rows:
        cells = [
            CellView(
                cell.count,
                None if cell.index is None else found.get(cell.index),
                grid.share(cell.count),
                printable(cell.name),
            )
            for cell in row.cells
        ]
        name, group = printable(manifest.classes[row.label]), manifest.shot_groups[row.label]
        rows.append(RowView(name, group, row.count, row.count / max([1, *grid.class_counts]), tuple(cells)))
    titles = tuple(map(printable, grid.titles))
    return GridView(grid.split, counts.num_images, titles, tuple(rows))


def _caption(train: SplitCounts, tests: Sequence[SplitCounts], ranking: SplitCounts) -> Iterator[str]:
    """Yields one sentence about training, and one about the test. Attributes have the ranks of ``ranking``."""
    high, low = int(train.counts_C.max()), int(train.counts_C.min())
    sizes = f"classes have {high:,} to {low:,} images" if high > low else f"every class has {high:,} images"
    inside = ""
    if train.counts_CA is not None and ranking.counts_CA is not None:
        majority = sum(rank_counts(ranking.counts_CA, train.counts_CA)[:1]) / max(1, int(train.counts_CA.sum()))
        inside = f", and {majority:.0%} of the images have the most frequent attribute of their class"
        if train.num_unknown:
            inside += f" ({train.num_unknown:,} have no known attribute)"
    yield f"In {train.split}, {sizes}{inside}."
    for test in tests:
        yield f"In {test.split}, {_test_words(ranking, test)}."


def _test_words(ranking: SplitCounts, test: SplitCounts) -> str:
    high, low = int(test.counts_C.max()), int(test.counts_C.min())
    if ranking.counts_CA is None or test.counts_CA is None:
        return f"every class has {high:,}" if high == low else f"classes have {high:,} to {low:,}"
    if test.counts_CA.min() == test.counts_CA.max():
        return (
            f"every class has {int(test.counts_CA.max()):,} with each attribute: what is rare in training counts as much as "
            "what is frequent"
        )
    majority = rank_counts(ranking.counts_CA, test.counts_CA)[0] / max(1, int(test.counts_CA.sum()))
    sizes = f"every class has {high:,}" if high == low else f"classes have {high:,} to {low:,}"
    return f"{sizes}, and {majority:.0%} have the attribute that is most frequent in training"


def _histograms(all_counts: Sequence[SplitCounts], manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yields a histogram of the classes of every split, then of its attributes."""
    order = by_size(all_counts[0].counts_C)
    names, groups = [manifest.classes[c] for c in order], [manifest.shot_groups[c] for c in order]
    for counts in all_counts:
        with style():
            figure, (axes,) = new_figure(FIGURE_PX, 190)
            histogram(axes, counts.counts_C[order], names, groups, width_px=FIGURE_PX)
            yield f"{counts.split}: images by class", to_svg(figure, f"classes-{counts.split}")
    for counts in (counts for counts in all_counts if counts.counts_CA is not None):
        with style():
            figure, (axes,) = new_figure(FIGURE_PX, 250)
            histogram(axes, np.asarray(counts.counts_CA).sum(0), manifest.attributes, width_px=FIGURE_PX)
            yield f"{counts.split}: images by attribute", to_svg(figure, f"attributes-{counts.split}")


def _rank_shares(ranking: SplitCounts, all_counts: Sequence[SplitCounts]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yields (split, shares of its images by attribute rank) of the splits that have attributes.

    Ranks are those of the long-tailed split where there is one, also of a run on balanced classes, as its metrics have them.
    """
    if ranking.counts_CA is not None:
        for counts in (counts for counts in all_counts if counts.counts_CA is not None):
            found = rank_counts(ranking.counts_CA, np.asarray(counts.counts_CA))
            yield counts.split, tuple(count / max(1, sum(found)) for count in found)
