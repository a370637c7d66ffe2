"""Intervals by resampling against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltcore.evaluation import bootstrap
from ltcore.evaluation.attributes import AttributeRanks, CellCounts, attribute_metrics
from ltcore.evaluation.bootstrap import bootstrap_intervals
from ltcore.evaluation.catalog import METRICS
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.metrics import metrics
from ltcore.evaluation.pairs import AttributeCounts, Pairs

GROUPS = ("many", "few")
RANKS_P = AttributeRanks(AttributeCounts.of_table(np.array([[9, 1], [9, 1]]))).of(Pairs.every(2, 2))


def counted(labels: list[int], right: list[bool], attributes: list[int] | None = None) -> Confusion:
    """Two classes, of which a wrong prediction takes the other."""
    confusion = Confusion(Pairs.every(2, 0 if attributes is None else 2))
    predictions = [label if hit else 1 - label for label, hit in zip(labels, right, strict=True)]
    logits_BC = 3 * torch.nn.functional.one_hot(torch.tensor(predictions), 2).float()
    confusion.update(logits_BC, torch.tensor(labels), None if attributes is None else torch.tensor(attributes))
    return confusion


def test_the_interval_of_a_recall_is_that_of_a_share() -> None:
    """Half of 400 samples of class 0, nine in ten of 100 of class 1."""
    right = [n % 2 == 0 for n in range(400)] + [n % 10 != 0 for n in range(100)]
    confusion = counted([0] * 400 + [1] * 100, right)
    found = bootstrap_intervals(confusion, None, GROUPS, seed=1, resamples=2000)
    for name, share, count in (("many", 0.5, 400), ("few", 0.9, 100)):
        half = 1.96 * math.sqrt(share * (1 - share) / count)
        assert found[name] == pytest.approx((share - half, share + half), abs=0.01)
    variance = (0.5 * 0.5 / 400 + 0.9 * 0.1 / 100) / 4  # classes are drawn apart
    half = 1.96 * math.sqrt(variance)
    assert found["balanced_accuracy"] == pytest.approx((0.7 - half, 0.7 + half), abs=0.01)


def test_every_metric_with_a_value_has_one_but_those_that_jump() -> None:
    attributes = [0, 1] * 20
    confusion = counted([0] * 20 + [1] * 20, [n % 3 > 0 for n in range(40)], attributes)
    values = metrics(confusion, GROUPS)
    values |= attribute_metrics(CellCounts.of(confusion, RANKS_P), GROUPS)
    found = bootstrap_intervals(confusion, RANKS_P, GROUPS, seed=1, resamples=50)
    jumping = {"worst_class", "worst_group", "geometric_mean", "harmonic_mean"}
    assert list(found) == [n for n in METRICS if values[n] is not None and n not in jumping]
    for name, (low, high) in found.items():
        assert low <= high, name


def test_the_same_arguments_give_the_same_numbers_and_another_seed_others() -> None:
    confusion = counted([0] * 20 + [1] * 20, [n % 3 > 0 for n in range(40)])
    first, again, other = (bootstrap_intervals(confusion, None, GROUPS, seed, resamples=60) for seed in (1, 1, 2))
    assert first == again != other


def test_where_the_test_balances_attributes_each_keeps_its_number_of_samples() -> None:
    """The majority is always right, the other one never: nothing is left to vary."""
    balanced = counted([0] * 20 + [1] * 20, [True, False] * 20, [0, 1] * 20)
    assert "top1" not in bootstrap_intervals(balanced, RANKS_P, GROUPS, seed=1, resamples=50)
    labels, attributes = [0] * 20 + [1] * 20, ([0] * 18 + [1] * 2) * 2
    natural = counted(labels, [a == 0 for a in attributes], attributes)
    low, high = bootstrap_intervals(natural, RANKS_P, GROUPS, seed=1, resamples=500)["top1"]
    half = 1.96 * math.sqrt(0.9 * 0.1 / 40)
    assert (low, high) == pytest.approx((0.9 - half, 0.9 + half), abs=0.02)


def test_a_class_that_lacks_an_attribute_of_those_tied_to_it_is_not_balanced() -> None:
    """It has as many samples of each of the others: the first is always right, the other one never."""
    confusion = Confusion(Pairs.every(2, 3))
    labels, attributes = torch.tensor([0] * 60 + [1] * 40), torch.tensor([0, 1, 2] * 20 + [0, 1] * 20)
    predictions = torch.where(attributes == 0, labels, 1 - labels)
    confusion.update(3 * torch.nn.functional.one_hot(predictions, 2).float(), labels, attributes)
    found = bootstrap_intervals(confusion, None, GROUPS, seed=1, resamples=500)
    half = 1.96 * math.sqrt(0.5 * 0.5 / 40)
    assert "many" not in found and found["few"] == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)


def test_attributes_of_a_class_of_its_own_are_balanced_in_it() -> None:
    """As fine classes are: the first is always right, the other one never."""
    confusion = Confusion(Pairs.every(2, 4))
    labels, attributes = torch.tensor([0] * 20 + [1] * 20), torch.tensor([0, 1] * 10 + [2, 3] * 10)
    predictions = torch.where(attributes % 2 == 0, labels, 1 - labels)
    confusion.update(3 * torch.nn.functional.one_hot(predictions, 2).float(), labels, attributes)
    trained = AttributeCounts.of_table(np.array([[9, 1, 0, 0], [0, 0, 9, 1]]))
    ranks_P = AttributeRanks(trained).of(Pairs.every(2, 4))
    assert "top1" not in bootstrap_intervals(confusion, ranks_P, GROUPS, seed=1, resamples=50)


def test_one_sample_of_each_attribute_does_not_seem_certain_either() -> None:
    confusion = counted([0, 0, 1, 1], [True, False, True, False], [0, 1, 0, 1])
    low, high = bootstrap_intervals(confusion, RANKS_P, GROUPS, seed=1, resamples=300)["top1"]
    assert high - low > 0.5


def test_one_sample_of_an_attribute_does_not_seem_certain() -> None:
    attributes = ([0] * 9 + [1]) * 2
    confusion = counted([0] * 10 + [1] * 10, [True] * 10 + [True] * 9 + [False], attributes)
    low, high = bootstrap_intervals(confusion, RANKS_P, GROUPS, seed=1, resamples=300)["attribute_rank/rare"]
    assert high - low > 0.5


def test_intervals_stay_within_what_a_metric_can_be() -> None:
    confusion = counted([0] * 10 + [1] * 10, [True] * 19 + [False])
    found = bootstrap_intervals(confusion, None, GROUPS, seed=1, resamples=200)
    assert "many" not in found, "certain in every resample"
    assert found["few"][1] == 1.0 and found["ece"][0] >= 0.0


def test_precision_of_few_samples_is_corrected_for_its_bias() -> None:
    """Of many classes with few samples each, resampled precision is too high; the interval holds the truth still.

    Quantiles of the resamples do not: so many classes leave less to chance than the bias is.
    """
    gen = torch.Generator().manual_seed(0)
    classes, each, right = 400, 10, 0.6
    labels = torch.arange(classes).repeat_interleave(each)
    guesses = torch.randint(classes, labels.shape, generator=gen)
    predictions = torch.where(torch.rand(labels.shape, generator=gen) < right, labels, guesses)
    confusion = Confusion(Pairs.every(classes, 0))
    confusion.update(torch.nn.functional.one_hot(predictions, classes).float(), labels)
    low, high = bootstrap_intervals(confusion, None, ["many"] * classes, seed=1, resamples=100)["macro_precision"]
    assert low < right + (1 - right) / classes < high


def test_what_is_the_same_in_all_resamples_has_no_interval() -> None:
    """Every sample of class 0 is right, half of those of class 1 are."""
    confusion = counted([0] * 30 + [1] * 30, [True] * 30 + [n % 2 == 0 for n in range(30)])
    found = bootstrap_intervals(confusion, None, GROUPS, seed=1, resamples=100)
    assert "many" not in found and found["few"][0] < 0.5 < found["few"][1]
    perfect = counted([0] * 30 + [1] * 30, [True] * 60)
    assert (
        not {"top1", "balanced_accuracy", "macro_precision"} & bootstrap_intervals(perfect, None, GROUPS, 1, 50).keys()
    )


def test_the_interval_is_the_basic_one_of_95_percent() -> None:
    """Its ends are those of the quantiles, mirrored at the value, and stay inside of the metric's limits."""
    drawn = np.linspace(0.2, 0.5, 1001).tolist()
    assert bootstrap._basic("top1", 0.3, drawn) == pytest.approx((2 * 0.3 - 0.4925, 2 * 0.3 - 0.2075))
    assert bootstrap._basic("top1", 0.22, drawn) == pytest.approx((0.0, 2 * 0.22 - 0.2075))
