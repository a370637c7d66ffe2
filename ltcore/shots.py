"""Shot groups: the classes with many, medium and few images. Plain Python, so that manifests are read without torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

SHOT_GROUPS = ("many", "medium", "few")
GIVEN = "given"
"""In place of a rule, where the data themselves say the groups."""


def shot_rule_of(splits: Collection[str]) -> str:
    """Returns the rule for images of one's own: that of GLT's authors where a test balances attributes too, else OLTR's.

    Counts say little about a benchmark that is as large as its images allow: all of its classes may be few.
    """
    return "glt" if "test_gbl" in splits else "count"


def shot_groups_by_count(counts: Sequence[int], many_above: int = 100, few_below: int = 20) -> tuple[str, ...]:
    """Applies OLTR's rule: many n > 100, few n < 20, medium between, including both ends. A group may be empty."""
    return tuple("many" if n > many_above else "few" if n < few_below else "medium" for n in counts)


def shot_groups_by_rank(counts: Sequence[int]) -> tuple[str, ...]:
    """Splits the classes, ranked by descending count, into thirds (ties by class id).

    For data sets whose counts do not separate the groups.
    """
    return _by_rank(counts, -(-len(counts) // 3), -(-2 * len(counts) // 3))


def shot_groups_glt(counts: Sequence[int]) -> tuple[str, ...]:
    """Splits the classes, ranked by descending count, as the authors of GLT do (Tang et al., ECCV 2022; their code).

    Of the 1,000 classes of ImageNet-GLT 400 are many and 150 few, of the 29 of MSCOCO-GLT 11 and 6; of other numbers 40% and
    15%, as of the former, and the smallest class is always few.
    """
    number = len(counts)
    return _by_rank(counts, *_GLT_ENDS.get(number, (round(0.4 * number), min(round(0.85 * number), number - 1))))


_GLT_ENDS = {1000: (400, 850), 29: (11, 23)}
"""Number of classes -> ranks at which medium and few begin."""


def _by_rank(counts: Sequence[int], medium: int, few: int) -> tuple[str, ...]:
    groups = [""] * len(counts)
    for rank, c in enumerate(sorted(range(len(counts)), key=lambda c: (-counts[c], c))):
        groups[c] = SHOT_GROUPS[(rank >= medium) + (rank >= few)]
    return tuple(groups)
