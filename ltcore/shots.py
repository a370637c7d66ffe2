"""Shot groups: which classes are many, medium and few. Plain Python, because reading a manifest does not need torch."""

from __future__ import annotations

from collections.abc import Sequence

SHOT_GROUPS = ("many", "medium", "few")


def shot_groups_by_count(counts: Sequence[int], many_above: int = 100, few_below: int = 20) -> tuple[str, ...]:
    """OLTR's rule: many n > 100, few n < 20, medium between, both ends included. A group may be empty."""
    return tuple("many" if n > many_above else "few" if n < few_below else "medium" for n in counts)


def shot_groups_by_rank(counts: Sequence[int]) -> tuple[str, ...]:
    """Thirds of the class rank by descending count (ties by class id): for data sets where counts say little."""
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    groups = [""] * len(counts)
    for rank, c in enumerate(order):
        groups[c] = SHOT_GROUPS[rank * 3 // len(counts)]
    return tuple(groups)
