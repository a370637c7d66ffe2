"""The difference between two configurations trained with the same seeds.

Winner and baseline of the same seed share initialization, order of samples and augmentation, so the difference per seed
varies less than each value. Its mean gets a two-sided Student t interval over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ltcore.evaluation.intervals import student
from ltcore.text import counted

Tests = Mapping[str, Mapping[str, float | None]]
"""``test`` of a ``run.json``: split -> metric -> value."""


@dataclass(frozen=True)
class PairedDifference:
    """One metric of winner and baseline with the same seeds; fractions, not points."""

    winner: tuple[float, ...]
    """A value per seed, as in ``baseline``."""
    baseline: tuple[float, ...]
    difference: float
    """Mean of (winner - baseline)."""
    low: float | None
    """Lower end of the interval; None with fewer than two seeds."""
    high: float | None
    distinguishable: bool
    """True where there is an interval and it leaves out 0."""

    def __post_init__(self) -> None:
        if not self.winner or len(self.winner) != len(self.baseline):
            raise ValueError(f"winner has {len(self.winner)} values and baseline {len(self.baseline)}, expected pairs")

    @property
    def num_seeds(self) -> int:
        """Counts the pairs."""
        return len(self.winner)


def paired_difference(winner: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """Returns the mean difference and its interval; elements i of both sequences have the same seed.

    At least one pair is required.
    """
    deltas = [w - b for w, b in zip(winner, baseline, strict=True)]
    mean = math.fsum(deltas) / len(deltas)
    values = (tuple(winner), tuple(baseline))
    interval = student(deltas, confidence)
    if interval is None:
        return PairedDifference(*values, mean, None, None, False)
    low, high = interval
    return PairedDifference(*values, mean, low, high, not low <= 0 <= high)


def points(value: float) -> str:
    """Formats a difference of fractions in signed percentage points: 0.0123 -> '+1.2'."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return text[1:] if float(f"{100 * value:.1f}") == 0 else text


def sentence(result: PairedDifference, *, minimize: bool = False) -> str:
    """Returns 'not distinguishable from the baseline (...)' or 'better (worse) than the baseline by x points (...)'.

    ``minimize`` where lower values are better.
    """
    if result.low is None or result.high is None:
        return (
            f"not distinguishable from the baseline (difference {points(result.difference)} points from one seed: "
            "an interval needs two or more)"
        )
    interval = f"95% CI {points(result.low)}..{points(result.high)}, {counted(result.num_seeds, 'seed')}"
    if not result.distinguishable:
        return f"not distinguishable from the baseline (difference {points(result.difference)} points, {interval})"
    side = "better" if (result.difference > 0) != minimize else "worse"
    return f"{side} than the baseline by {100 * abs(result.difference):.1f} points ({interval})"


def compare(winner: Mapping[int, Tests], baseline: Mapping[int, Tests]) -> dict[str, dict[str, PairedDifference]]:
    """Compares per test split and metric: split -> metric -> values per seed, mean difference and interval.

    Both arguments map a seed to the ``test`` results of its run. Only seeds that both have are compared, in ascending
    order; a metric that is None anywhere (an empty shot group) is left out.
    """
    seeds = sorted(winner.keys() & baseline.keys())
    result: dict[str, dict[str, PairedDifference]] = {}
    for split, metrics in winner[seeds[0]].items() if seeds else ():
        for metric in metrics:
            ours = [winner[s][split].get(metric) for s in seeds]
            theirs = [baseline[s].get(split, {}).get(metric) for s in seeds]
            pairs = [(w, b) for w, b in zip(ours, theirs, strict=True) if w is not None and b is not None]
            if len(pairs) < len(seeds):
                continue
            result.setdefault(split, {})[metric] = paired_difference([w for w, _ in pairs], [b for _, b in pairs])
    return result
