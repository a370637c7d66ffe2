"""Whether a split has as many samples of each class, and what that means for its metrics, in words."""

from __future__ import annotations

from collections.abc import Sequence


def is_balanced(support: Sequence[int]) -> bool:
    """Tells whether all classes with samples have the same number; then top-1 is the balanced accuracy."""
    return len({count for count in support if count}) <= 1


def remarks(split: str, support: Sequence[int]) -> list[str]:
    """Returns what a reader of the metrics has to know about the classes of a split; [] for a balanced, complete one."""
    present = [count for count in support if count]
    lines = []
    if not is_balanced(support):
        lines.append(
            f"{split} is not balanced (largest/smallest class {max(present)}/{min(present)}): top-1 follows the large "
            "classes, balanced accuracy counts every class alike."
        )
    if len(present) < len(support):
        lines.append(f"{split}: {len(present)} of {len(support)} classes have images; the metrics are of these alone.")
    return lines
