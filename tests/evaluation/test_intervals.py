"""Wilson's interval against closed values and SciPy's."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from ltcore.evaluation.intervals import wilson

Z2 = 1.959963984540054**2


def test_closed_values() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(Z2 / (10 + Z2)))
    assert wilson(10, 10) == (pytest.approx(10 / (10 + Z2)), 1.0)
    low, high = wilson(5, 10)
    assert (low + high) / 2 == pytest.approx(0.5) and high - low == pytest.approx((Z2 / (10 + Z2)) ** 0.5)
    assert wilson(1, 1) == (pytest.approx(1 / (1 + Z2)), 1.0)


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (1, 3), (7, 19), (50, 50), (499, 5000)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_it_is_that_of_scipy(hits: int, trials: int, level: float) -> None:
    expected = binomtest(hits, trials).proportion_ci(level, method="wilson")
    assert wilson(hits, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-12)
