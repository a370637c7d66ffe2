"""Shot groups: the classes with many, medium and few images. Plain Python, so that manifests are read without torch."""

from __future__ import annotations

from collections.abc import Sequence

SHOT_GROUPS = ("many", "medium", "few")


def shot_groups_by_count(counts: Sequence[int], many_above: int = 100, few_below: int = 20) -> tuple[str, ...]:
    """Applies OLTR's rule: many n > 100, few n < 20, medium between, including both ends. A group may be empty."""
    return tuple("many" if n > many_above else "few" if n < few_below else "medium" for n in counts)


def shot_groups_by_rank(counts: Sequence[int]) -> tuple[str, ...]:
    """Splits the classes, ranked by descending count, into thirds (ties by class id).

    For data sets whose counts do not separate the groups.
    """
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    groups = [""] * len(counts)
    for rank, c in enumerate(order):
        groups[c] = SHOT_GROUPS[rank * 3 // len(counts)]
    return tuple(groups)
