"""Pictures of a data set as PNG files: what is unbalanced in it, split by split."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.evaluation.pairs import Ints
from ltcore.reporting.data_figures import MAX_BARS, heat_map, histogram, rank_shares
from ltcore.reporting.grid_columns import Columns, grid_columns, without_attributes
from ltcore.reporting.grid_figure import grid_figure
from ltcore.reporting.pictures import thumbnail
from ltcore.reporting.sample_grid import sample_grid, shown_classes, shown_words
from ltcore.reporting.split_counts import SplitCounts, by_size, count_split, rank_counts, reading_order
from ltcore.reporting.svg import PX_PER_INCH, new_figure, style
from ltcore.shots import SHOT_GROUPS
from ltcore.storage import join, write_bytes_atomic
from ltcore.text import counted

if TYPE_CHECKING:
    from PIL import Image

IMAGE_PX = 132
"""Longest side of an image in a grid: twice its size, as the files have two dots per pixel."""
_DOTS_PER_PX = 2


def write_pictures(data_uri: str, out_dir: str, progress: Callable[[str], None] | None = None) -> list[str]:
    """Writes pictures of a data set and returns their paths; earlier ones of the same names are replaced.

    ``classes.png`` has a histogram of the classes for each split, ``attributes.png`` one of the attributes and of their
    ranks within the classes, ``classes-attributes.png`` both as a heat map, and ``samples-<split>.png`` images. Data
    without attributes have no pictures of them. Where classes have attributes of their own, columns of the last two are ranks
    of attributes in the class, and images have names. Equal data give equal pictures.

    Args:
        data_uri: folder or object-store prefix of shards; in a store, a shard is fetched whole for a few images of it.
        out_dir: folder for the pictures, made where it is missing.
        progress: called with the path of each picture once it is written.

    Raises DataError where the shards cannot be read.
    """
    pictures = _Writer(ShardStore(data_uri), out_dir, progress)
    pictures.write()
    return pictures.written


class _Writer:
    """What all pictures of a data set have in common: its counts, and the order of its classes."""

    def __init__(self, store: ShardStore, out_dir: str, progress: Callable[[str], None] | None) -> None:
        self.store, self.manifest, self.out_dir, self.progress = store, store.manifest, out_dir, progress
        splits = [s for s in reading_order(self.manifest.splits) if self.manifest.split(s).num_samples]
        if not splits:
            raise DataError(f"{store.uri} has no image in any split: there is nothing to show.")
        self.counts = [count_split(store, split) for split in splits]
        self.order = by_size(self.counts[0].counts_C)
        self.written: list[str] = []

    def write(self) -> None:
        with style():
            self._save("classes", self._classes())
            classes = shown_classes(self.counts[0].counts_C, self.manifest.shot_groups)
            columns = self._columns(classes)
            if attributed := [counts for counts in self.counts if counts.counts_CA is not None]:
                self._save("attributes", self._attributes(attributed))
                self._save("classes-attributes", self._heat_maps(attributed, columns))
            for counts in self.counts:
                self._save(f"samples-{counts.split}", self._samples(counts, classes, columns))

    def _save(self, name: str, figure: Any) -> None:
        data = io.BytesIO()
        figure.set_facecolor("white")
        figure.savefig(data, format="png", dpi=_DOTS_PER_PX * PX_PER_INCH, metadata={"Software": None})
        path = join(self.out_dir, f"{name}.png")
        write_bytes_atomic(path, data.getvalue())
        self.written.append(path)
        if self.progress:
            self.progress(path)

    def _classes(self) -> Any:
        names = [self.manifest.classes[c] for c in self.order]
        groups = [self.manifest.shot_groups[c] for c in self.order]
        width_px = min(1400, max(700, 12 * len(names))) if len(names) <= MAX_BARS else 1000
        figure, all_axes = new_figure(width_px, 230 * len(self.counts) + 40, rows=len(self.counts))
        for axes, counts in zip(all_axes, self.counts, strict=True):
            histogram(axes, counts.counts_C[self.order], names, groups, width_px=width_px)
            axes.set_title(f"{counts.split}: {_images(counts)}", pad=10)
        tally = ", ".join(f"{groups.count(group):,} {group}" for group in SHOT_GROUPS if group in groups)
        all_axes[-1].set_xlabel(f"{len(names):,} classes ({tally}), by images in {self.counts[0].split}")
        return figure

    def _attributes(self, all_counts: Sequence[SplitCounts]) -> Any:
        names = self.manifest.attributes
        figure, all_axes = new_figure(
            1000, 160 * len(all_counts) + 120, 2, len(all_counts), sharex="col", width_ratios=(3, 1)
        )
        train_CA = _of(all_counts[0])
        for (left, right), counts in zip(np.reshape(np.array(all_axes), (-1, 2)), all_counts, strict=True):
            histogram(left, _of(counts).sum(0), names, width_px=750)
            left.set_title(f"{counts.split}: images by attribute{_unknown(counts)}", pad=10)
            rank_shares(right, rank_counts(train_CA, _of(counts)))
            right.set_title(f"by rank in the class (of {all_counts[0].split})", pad=10)
            right.tick_params(labelbottom=True)
        return figure

    def _heat_maps(self, all_counts: Sequence[SplitCounts], shown: Columns) -> Any:
        """Draws all attributes, or the columns that are shown where these are ranks."""
        names = [self.manifest.classes[c] for c in self.order]
        titles = shown.titles if shown.by_rank else self.manifest.attributes
        what = f"rank of its attributes (of {all_counts[0].split})" if shown.by_rank else "attribute"
        columns = min(2, len(all_counts))
        rows = -(-len(all_counts) // columns)
        height_px = min(640, 170 + 24 * len(names))
        figure, all_axes = new_figure(560 * columns, height_px * rows, columns, rows)
        for axes, counts in zip(all_axes, all_counts, strict=False):
            table = shown.counts_of(_of(counts)) if shown.by_rank else _of(counts)
            averaged = heat_map(axes, table[self.order], names, titles)
            axes.set_title(f"{counts.split}: images of each class and {what}", pad=10)
        for axes in all_axes[::columns]:
            means = f"; each row is the mean of about {averaged}" if averaged > 1 else ""
            axes.set_ylabel(f"{len(names):,} classes, by images in {self.counts[0].split}{means}")
        for axes in all_axes[len(all_counts) :]:
            axes.set_visible(False)
        return figure

    def _columns(self, classes: Sequence[int]) -> Columns:
        """Returns the columns, chosen in the first split that has attributes."""
        first = next((counts for counts in self.counts if counts.counts_CA is not None), None)
        if first is None:
            return without_attributes(len(self.manifest.classes))
        return grid_columns(first, self.counts, self.manifest.attributes, classes)

    def _samples(self, counts: SplitCounts, classes: Sequence[int], columns: Columns) -> Any:
        grid = sample_grid(self.store, counts, classes, columns)
        images = self._read(counts.split, grid.indexes)
        manifest, title = self.manifest, f"{counts.split}: {_images(counts)}"
        what = (
            "its attribute, and how many there are"
            if columns.by_rank
            else "how many there are of its class and attribute"
        )
        legend = f"Below an image is {what}." if grid.titles else ""
        remark = f"{legend} {shown_words(manifest, len(classes), columns)}".strip()
        return grid_figure(grid, images, manifest.classes, manifest.shot_groups, title, remark)

    def _read(self, split: str, indexes: Sequence[int]) -> dict[int, Image.Image]:
        rows = self.store.read_rows(split, np.array(indexes, np.int64))
        found = zip(indexes, rows, strict=True)
        return {index: thumbnail(data, self.store.where(split, index), IMAGE_PX) for index, data in found}


def _of(counts: SplitCounts) -> Ints:
    assert counts.counts_CA is not None, "only splits with attributes are drawn"
    return counts.counts_CA


def _images(counts: SplitCounts) -> str:
    low, high = int(counts.counts_C.min()), int(counts.counts_C.max())
    each = f"{high:,} per class" if low == high else f"{high:,} to {low:,} per class"
    return f"{counted(counts.num_images, 'image')}, {each}"


def _unknown(counts: SplitCounts) -> str:
    return f", {counted(counts.num_unknown, 'image')} without one" if counts.num_unknown else ""
