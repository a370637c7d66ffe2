"""Histograms of the classes and attributes of a split, and their table as a heat map, drawn into given axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ltcore.reporting.figures import short_label
from ltcore.reporting.split_counts import Ints
from ltcore.reporting.svg import FAINT, INK, PAGE, WINNER
from ltcore.shots import SHOT_GROUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 120
"""More classes or attributes are drawn as a curve."""
MAX_CURVE_POINTS = 600
MAX_NAMED = 40
"""More rows or columns of a heat map have no names."""
LOG_ABOVE = 30
"""Ratio of the largest to the smallest count from which the axis is logarithmic."""
MAX_HEAT_ROWS = 250
"""More rows of a heat map are averaged."""
MAX_NUMBERED = (25, 12)
"""Rows and columns of a heat map whose cells have room for their numbers."""
_AXIS_PX, _CHAR_PX, _LINE_PX = 60.0, 8.0, 15.0
"""Width of the vertical axis, and size of a tick label."""
_GROUP_ALPHA = dict(zip(SHOT_GROUPS, (0.95, 0.6, 0.35), strict=True))


def histogram(axes: Axes, counts: Ints, names: Sequence[str], groups: Sequence[str] = (), *, width_px: float) -> None:
    """Draws counts in the given order as bars, and of many as a curve.

    Args:
        axes: where to draw.
        counts: [N] images of each class or attribute.
        names: of them; written where they have room.
        groups: shot group of each, the same ones together; they are shaded and named. () for none.
        width_px: of the axes with their labels.
    """
    few, slot_px = len(counts) <= MAX_BARS, (width_px - _AXIS_PX) / max(1, len(counts))
    top = _scale(axes, counts)
    if few:
        alphas = [_GROUP_ALPHA[group] for group in groups] or [0.75] * len(counts)
        for x, (count, alpha) in enumerate(zip(counts.tolist(), alphas, strict=True)):
            axes.bar(x, count, 0.8, color=PAGE, lw=0)  # no grid shines through
            axes.bar(x, count, 0.8, color=WINNER, alpha=alpha, lw=0)
    else:
        at = np.unique(np.linspace(0, len(counts) - 1, MAX_CURVE_POINTS).round().astype(int))
        axes.plot(at, np.maximum(counts[at], axes.get_ylim()[0]), color=WINNER, lw=2)
    axes.set_xlim(-0.6, len(counts) - 0.4)
    _name_ticks(axes, counts, names, slot_px)
    _mark(axes, groups, top, slot_px)


def _scale(axes: Axes, counts: Ints) -> float:
    """Sets the vertical axis, with room for numbers and names of groups, and returns the height of the latter."""
    high, low = max(1, int(counts.max(initial=0))), max(1, int(counts[counts > 0].min(initial=2**62)))
    if high > LOG_ABOVE * low:
        axes.set_yscale("log")
        bottom = 0.7 * low
        axes.set_ylim(bottom, high * (high / bottom) ** 0.3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.minorticks_off()
        return high * (high / bottom) ** 0.22
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(0, 1.3 * high)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return 1.2 * high


def _name_ticks(axes: Axes, counts: Ints, names: Sequence[str], slot_px: float) -> None:
    """Writes names below and numbers above the bars, as far as they have room."""
    shown = [short_label(name, 24) for name in names]
    if slot_px < _LINE_PX:
        axes.set_xticks([])
        return
    longest = max(map(len, shown), default=0)
    axes.set_xticks(range(len(shown)), shown, rotation=0 if longest * _CHAR_PX < slot_px else 90)
    axes.tick_params(axis="x", length=0)
    if slot_px > _CHAR_PX * max(len(f"{count:,}") for count in counts.tolist()):
        for x, count in enumerate(counts.tolist()):
            height = max(count, axes.get_ylim()[0])
            axes.annotate(f"{count:,}", (x, height), (0, 2), textcoords="offset points", ha="center", fontsize=10)


def _mark(axes: Axes, groups: Sequence[str], height: float, slot_px: float) -> None:
    """Names each run of equal shot groups above its classes, as far as names have room beside each other."""
    starts = [x for x, group in enumerate(groups) if x == 0 or group != groups[x - 1]]
    for start, end in pairwise([*starts, len(groups)]):
        if start:
            axes.axvline(start - 0.5, color=FAINT, lw=0.8, ls=":", zorder=1)
        room_px = (end - start) * slot_px
        texts = (f"{groups[start]}: {end - start:,} class{'es' * (end - start > 1)}", groups[start])
        text = next((text for text in texts if len(text) * _CHAR_PX < room_px), "")
        axes.annotate(text, ((start + end - 1) / 2, height), ha="center", va="center", fontsize=10)


def rank_shares(axes: Axes, counts: Sequence[int]) -> None:
    """Draws what share of the images has the majority, the second and a rare attribute of its class."""
    total = max(1, sum(counts))
    shares = [100 * count / total for count in counts]
    axes.bar(range(3), shares, 0.7, color=WINNER, alpha=0.75, lw=0)
    for x, share in enumerate(shares):
        axes.annotate(f"{share:.0f}%", (x, share), (0, 3), textcoords="offset points", ha="center")
    axes.set_xticks(range(3), ("majority", "second", "rare"))
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 115)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)


def heat_map(axes: Axes, counts_RA: Ints, names: Sequence[str], attributes: Sequence[str]) -> int:
    """Draws images by class and attribute, logarithmic, empty cells white; few cells have their numbers in them.

    Args:
        axes: on a figure of any size.
        counts_RA: classes in the order of the rows by attributes.
        names: of the rows.
        attributes: of the columns.

    Returns how many classes a row is the mean of: with more of them than the figure has lines, a single one cannot be seen.
    """
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    colors = LinearSegmentedColormap.from_list("counts", ["#dcebf5", WINNER, "#00304d"])
    num_rows, num_columns = counts_RA.shape
    drawn = min(num_rows, MAX_HEAT_ROWS)
    starts = np.linspace(0, num_rows, drawn, endpoint=False).astype(int)
    means_RA = np.add.reduceat(counts_RA, starts, axis=0) / np.diff(starts, append=num_rows)[:, None]
    high, low = max(2.0, means_RA.max(initial=0)), min(1.0, means_RA[means_RA > 0].min(initial=1))
    masked = np.ma.masked_equal(means_RA, 0)
    image = axes.imshow(masked, cmap=colors, norm=LogNorm(low, high), aspect="auto", interpolation="nearest")
    if num_rows <= MAX_NUMBERED[0] and num_columns <= MAX_NUMBERED[1]:
        for (row, column), count in np.ndenumerate(counts_RA):
            dark = count > high**0.45
            axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=9, color=PAGE if dark else INK)
    else:
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, format=lambda value, _: f"{value:,g}")
        bar.outline.set_visible(False)
        bar.ax.minorticks_off()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(*_ticks(attributes), rotation=90)
    axes.set_yticks(*_ticks(names))
    return round(num_rows / drawn)


def _ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Returns places and labels of the ticks of an axis; none where names would cover each other."""
    shown = [short_label(name, 20) for name in names] if len(names) <= MAX_NAMED else []
    return list(range(len(shown))), shown
