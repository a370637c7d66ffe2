"""Confidence intervals: of a share, such as a recall that few images measure, and of a mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson(hits: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of the share of ``hits`` among ``trials`` > 0.

    Trials that repeat each other count once: of each, the share of its repetitions that hit is a hit.

    Unlike the interval of Wald it has a width at 0 and 1, and stays inside. Source: Wilson, Probable Inference, the Law of
    Succession, and Statistical Inference, JASA 1927; without continuity correction.
    """
    share, z2 = hits / trials, NormalDist().inv_cdf(0.5 + level / 2) ** 2
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return (max(0.0, center - half) if hits else 0.0), (min(1.0, center + half) if hits < trials else 1.0)


def student(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Returns the two-sided Student t interval of the mean; None with fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    from scipy.stats import t  # a dependency of scikit-learn, slow to import

    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(t.ppf((1 + level) / 2, n - 1)) * math.sqrt(variance / n)
    return mean - half, mean + half
