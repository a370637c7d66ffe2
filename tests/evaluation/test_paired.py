"""Paired differences: the interval against scipy's own test, and the words."""

from __future__ import annotations

import pytest

from ltcore.evaluation.paired import compare, paired_difference, points, sentence

WINNER, BASELINE = [0.81, 0.84, 0.80], [0.78, 0.80, 0.79]


def test_interval_equals_that_of_scipy() -> None:
    from scipy.stats import ttest_rel

    ours = paired_difference(WINNER, BASELINE)
    low, high = ttest_rel(WINNER, BASELINE).confidence_interval(0.95)
    assert ours.difference == pytest.approx(0.08 / 3)
    assert (ours.low, ours.high) == pytest.approx((low, high))
    assert not ours.distinguishable  # three seeds: t is 4.3


def test_closed_form() -> None:
    ours = paired_difference([0.2, 0.4], [0.1, 0.1])  # deltas 0.1, 0.3: sd/sqrt(2) = 0.1, t(0.975, 1) = 12.7062
    assert ours.difference == pytest.approx(0.2)
    assert (ours.low, ours.high) == pytest.approx((0.2 - 1.27062, 0.2 + 1.27062), abs=1e-5)


def test_equal_deltas() -> None:
    better = paired_difference([0.75, 0.5], [0.5, 0.25])
    assert better.distinguishable
    assert (better.low, better.high) == (0.25, 0.25)
    assert not paired_difference([0.5, 0.5], [0.5, 0.5]).distinguishable


def test_sentences() -> None:
    assert sentence(paired_difference(WINNER, BASELINE)) == (
        "not distinguishable from the baseline (difference +2.7 points, 95% CI −1.1..+6.5, 3 seeds)"
    )
    assert sentence(paired_difference([0.51, 0.52, 0.53], [0.41, 0.42, 0.425])) == (
        "better than the baseline by 10.2 points (95% CI +9.4..+10.9, 3 seeds)"
    )
    assert sentence(paired_difference([0.41, 0.42, 0.425], [0.51, 0.52, 0.53])) == (
        "worse than the baseline by 10.2 points (95% CI −10.9..−9.4, 3 seeds)"
    )
    lower = paired_difference([0.41, 0.42, 0.425], [0.51, 0.52, 0.53])
    assert sentence(lower, minimize=True).startswith("better than the baseline by ")
    alone = paired_difference([0.9], [0.1])
    assert not alone.distinguishable
    assert sentence(alone) == (
        "not distinguishable from the baseline (difference +80.0 points from one seed: an interval needs two or more)"
    )


def test_points() -> None:
    assert [points(v) for v in (0.0123, -0.0123, 0.0, -0.0001)] == ["+1.2", "−1.2", "0.0", "0.0"]


def test_compare_pairs_by_seed_and_leaves_out_what_is_undefined() -> None:
    winner = {
        2: {"test": {"top1": 0.8, "few": None}},
        0: {"test": {"top1": 0.6, "few": None}},
        7: {"test": {"top1": 0.0}},
    }
    baseline = {0: {"test": {"top1": 0.5, "few": None}}, 2: {"test": {"top1": 0.6, "few": None}}}
    result = compare(winner, baseline)
    assert set(result) == {"test"}
    assert set(result["test"]) == {"top1"}
    row = result["test"]["top1"]
    assert (row.winner, row.baseline) == ((0.6, 0.8), (0.5, 0.6))
    assert row.difference == pytest.approx(0.15)
    assert row.low is not None and row.high is not None and row.low < 0.15 < row.high
    assert row.distinguishable is False
    assert compare(winner, {}) == {}


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([0.1], [0.1, 0.2])


def test_a_metric_that_one_seed_lacks_is_not_compared_over_the_others() -> None:
    winner = {seed: {"test": {"top1": 0.5, "few": few}} for seed, few in ((0, 0.2), (1, None))}
    baseline = {seed: {"test": {"top1": 0.4, "few": 0.1}} for seed in (0, 1)}
    assert set(compare(winner, baseline)["test"]) == {"top1"}
