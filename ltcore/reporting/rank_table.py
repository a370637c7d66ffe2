"""Accuracy by attribute rank within the class, for all classes and for each shot group.

A rank is that of an attribute among the training images of one class: ``majority`` is its most frequent one, ``second`` the
next, ``rare`` all others. What a method gains on rare attributes does not show in an average over ordinary test images,
of which most have the majority attribute (Tang et al., ECCV 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ltcore.config.records import Values
from ltcore.evaluation.catalog import ATTRIBUTE_RANKS
from ltcore.evaluation.paired import PairedDifference, points
from ltcore.reporting.format import mean_sd
from ltcore.reporting.rank_figures import slopes
from ltcore.shots import SHOT_GROUPS

PREFIX = "attribute_rank/"
"""Of the metrics."""
RANKS = ATTRIBUTE_RANKS
GROUPS = {"": "all classes", **{group: f"{group}-shot" for group in SHOT_GROUPS}}
WIDTHS_PX = {"wide": 1000, "narrow": 370}
"""Figures for desktops and phones; the page shows one of them."""


@dataclass(frozen=True)
class RankCell:
    """One number of the table."""

    metric: str
    value: float | None
    """A fraction: the mean over seeds, or the mean difference."""
    text: str
    kind: str = ""
    """Of a difference: 'better', 'worse', or 'same' where it cannot be told from 0."""


@dataclass(frozen=True)
class RankRow:
    """A method, or the difference of two, in one shot group."""

    label: str
    cells: tuple[RankCell, ...]
    """By rank."""


@dataclass(frozen=True)
class RankGroup:
    """The classes of one shot group."""

    title: str
    rows: tuple[RankRow, ...]


@dataclass(frozen=True)
class RankTable:
    """Rows are shot groups and methods, columns are ranks."""

    split: str
    title: str
    """Of the test, for readers."""
    groups: tuple[RankGroup, ...]
    figures: Mapping[str, str]
    """'wide' and 'narrow' -> SVG."""


def rank_metric(rank: str, group: str = "") -> str:
    """Returns the name of a metric; without a group it is about all classes."""
    return f"{PREFIX}{rank}/{group}" if group else f"{PREFIX}{rank}"


_CELLS = frozenset(rank_metric(rank, group) for rank in RANKS for group in GROUPS)


def compared_methods(cells: Mapping[str, PairedDifference]) -> dict[str, Values]:
    """Returns what :func:`rank_groups` takes for a sweep's comparison on one split: baseline and winner."""
    return {
        "baseline": {metric: cell.baseline for metric, cell in cells.items()},
        "winner": {metric: cell.winner for metric, cell in cells.items()},
    }


def rank_groups(
    methods: Mapping[str, Values], difference: Mapping[str, PairedDifference] | None = None
) -> tuple[RankGroup, ...]:
    """Returns the rows of a table; () where no method was measured by rank.

    Args:
        methods: name -> metric -> a value for each seed; other metrics are ignored.
        difference: metric -> difference of two of the methods, which makes a last row in each group.
    """
    groups = []
    for group, title in GROUPS.items():
        metrics = [rank_metric(rank, group) for rank in RANKS]
        rows = [
            RankRow(name, tuple(_cell(m, _numbers(values, m)) for m in metrics)) for name, values in methods.items()
        ]
        if all(cell.value is None for row in rows for cell in row.cells):
            continue
        if difference is not None:
            rows.append(RankRow("difference", tuple(_difference(m, difference.get(m)) for m in metrics)))
        groups.append(RankGroup(title, tuple(rows)))
    return tuple(groups)


def rank_table(
    split: str,
    title: str,
    methods: Mapping[str, Values],
    colors: Mapping[str, str],
    difference: Mapping[str, PairedDifference] | None = None,
) -> RankTable | None:
    """Returns the table of one test with its figure; None where no method was measured by rank there.

    Args:
        split: test split, a part of the ids in the figures.
        title: of the test, for readers.
        methods: as for :func:`rank_groups`.
        colors: method -> color of ``svg``.
        difference: as for :func:`rank_groups`.
    """
    groups = rank_groups(methods, difference)
    if not groups:
        return None
    panels = {
        group.title: {row.label: [cell.value for cell in row.cells] for row in group.rows if row.label in methods}
        for group in groups
    }
    drawn = {kind: slopes(panels, RANKS, colors, f"ranks-{kind}-{split}", px) for kind, px in WIDTHS_PX.items()}
    return RankTable(split, title, groups, drawn)


def is_rank_metric(metric: str) -> bool:
    """Tells whether a metric is a cell of this table, so that other tables need not list it again."""
    return metric in _CELLS


def _numbers(values: Values, metric: str) -> list[float]:
    return [value for value in values.get(metric, ()) if value is not None]


def _cell(metric: str, numbers: Sequence[float]) -> RankCell:
    return RankCell(metric, fmean(numbers) if numbers else None, mean_sd(numbers).removesuffix("%"))


def _difference(metric: str, found: PairedDifference | None) -> RankCell:
    if found is None:
        return RankCell(metric, None, "—")
    kind = "same" if not found.distinguishable else "better" if found.difference > 0 else "worse"
    return RankCell(metric, found.difference, points(found.difference), kind)
