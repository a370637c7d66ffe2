"""What every metric of a plugin promises: a finite number of what was counted, for any split of the rows and any network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ltcore.contracts.expect import expect
from ltcore.contracts.harness import CLASSES, COUNTS, SAMPLES
from ltcore.contracts.randomness import apart, as_rank
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.pairs import Pairs
from ltcore.evaluation.plugged import Metric, MetricOptions, Scores, metric_of
from ltcore.rng import generator
from ltcore.shots import shot_groups_by_rank

_LABELS_N = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))
_GROUPS = shot_groups_by_rank(COUNTS)
_MAY_DIFFER = 1e-5
"""Relative; 32 bits of a logit are summed in another order by other sizes of batches."""


def _logits() -> Tensor:
    return 3 * torch.randn(SAMPLES, CLASSES, generator=generator(0, "logits of a metric"))


def _build(name: str) -> Metric:
    return metric_of(name, MetricOptions())


def _counted(name: str, logits_NC: Tensor, labels_N: Tensor, *sizes: int, attributes: int = 2) -> Confusion:
    """Counts the samples in batches of some sizes, the last one over and over."""
    found = Confusion(Pairs.every(CLASSES, attributes))
    found.scores = Scores({name: _build(name)}, CLASSES)
    start = 0
    for turn in range(len(labels_N)):
        stop = start + (sizes[min(turn, len(sizes) - 1)] if sizes else len(labels_N))
        if start < len(labels_N):
            here = slice(start, stop)
            numbers_B = torch.arange(len(labels_N))[here]
            found.update(
                logits_NC[here].clone(), labels_N[here].clone(), numbers_B % attributes if attributes else None
            )
        start = stop
    return found


def _value(name: str, found: Confusion) -> float | None:
    assert found.scores is not None
    return found.scores.values(found, _GROUPS)[name]


def _expect_same(a: float | None, b: float | None, broken: str) -> None:
    same = a == b if a is None or b is None else math.isclose(a, b, rel_tol=_MAY_DIFFER, abs_tol=_MAY_DIFFER)
    expect(same, f"{broken}: {a} and {b}")


def it_has_a_value_on_an_ordinary_split(name: str) -> None:
    """Tells whether a split with samples of every class and a finite network gives a number, without attributes too."""
    for attributes in (0, 2):
        found = _value(name, _counted(name, _logits(), _LABELS_N, attributes=attributes))
        expect(found is not None, f"it is None with {attributes or 'no'} attributes")


def calling_it_twice_is_the_same(name: str) -> None:
    """Tells whether nothing but what was counted determines it, global generators and earlier calls least of all."""
    a, b = apart(lambda: _value(name, _counted(name, _logits(), _LABELS_N)))
    expect(a == b, f"first it is {a}, then {b}")
    metric = _build(name)
    scores = Scores({name: metric}, CLASSES)
    scores.update(_logits()[:7], _LABELS_N[:7])
    again = Scores({name: metric}, CLASSES)
    again.update(_logits(), _LABELS_N)
    whole = _counted(name, _logits(), _LABELS_N)
    whole.scores = again
    expect(_value(name, whole) == a, "it depends on what was evaluated before")


def order_and_batches_of_samples_mean_nothing(name: str) -> None:
    """Tells whether it does not depend on the order of the samples, nor on how they are cut into batches."""
    logits_NC = _logits()
    whole = _value(name, _counted(name, logits_NC, _LABELS_N, attributes=0))
    order_N = torch.randperm(SAMPLES, generator=generator(0, "order of a metric"))
    shuffled = _value(name, _counted(name, logits_NC[order_N], _LABELS_N[order_N], attributes=0))
    _expect_same(whole, shuffled, "another order of the samples gives another value")
    cut = _value(name, _counted(name, logits_NC, _LABELS_N, 1, 5, 11, attributes=0))
    _expect_same(whole, cut, "other sizes of batches give another value")


def the_number_of_ranks_means_nothing(name: str) -> None:
    """Tells whether sums of two ranks give what one rank finds."""
    logits_NC, half = _logits(), SAMPLES // 3
    whole = _counted(name, logits_NC, _LABELS_N, attributes=0)
    with as_rank(0, 2):
        first = _counted(name, logits_NC[:half], _LABELS_N[:half], attributes=0)
    with as_rank(1, 2):
        second = _counted(name, logits_NC[half:], _LABELS_N[half:], attributes=0)
        assert first.scores is not None and second.scores is not None
        for mine, theirs in (
            (first.counts_PC, second.counts_PC),
            (first.top_C, second.top_C),
            (first.bins_CK3, second.bins_CK3),
            (first.scores.sums_MC2, second.scores.sums_MC2),
        ):
            mine += theirs
        together = _value(name, first)
    _expect_same(_value(name, whole), together, "two ranks find another value")


def odd_splits_give_a_finite_number_or_none(name: str) -> None:
    """Tells whether splits with missing classes, one sample or none, and extreme or equal logits are borne."""
    logits_NC = _logits()
    few = _LABELS_N < 2
    for what, logits, labels in (
        ("two classes alone", logits_NC[few], _LABELS_N[few]),
        ("one sample", logits_NC[:1], _LABELS_N[:1]),
        ("no sample", logits_NC[:0], _LABELS_N[:0]),
        ("huge logits", 1e4 * logits_NC, _LABELS_N),
        ("logits that are not finite", logits_NC.clone().fill_(math.nan), _LABELS_N),
        ("equal logits", torch.zeros_like(logits_NC), _LABELS_N),
        ("a perfect network", 50 * torch.eye(CLASSES)[_LABELS_N], _LABELS_N),
        ("a network that is always wrong", -50 * torch.eye(CLASSES)[_LABELS_N], _LABELS_N),
    ):
        try:
            _value(name, _counted(name, logits, labels))
        except Exception as error:
            raise AssertionError(f"with {what}: {error or type(error).__name__}") from None


def what_it_is_given_stays_as_it_is(name: str) -> None:
    """Tells whether logits and labels, which other metrics need too, are not changed in place."""
    logits_BC, labels_B = _logits().double(), _LABELS_N.clone()
    before = logits_BC.clone()
    _build(name).score(logits_BC, labels_B)
    expect(torch.equal(logits_BC, before) and torch.equal(labels_B, _LABELS_N), "it changes logits or labels in place")


CONTRACTS: tuple[Callable[[str], None], ...] = (
    it_has_a_value_on_an_ordinary_split,
    calling_it_twice_is_the_same,
    order_and_batches_of_samples_mean_nothing,
    the_number_of_ranks_means_nothing,
    odd_splits_give_a_finite_number_or_none,
    what_it_is_given_stays_as_it_is,
)
