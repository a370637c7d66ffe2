"""Environment weights against closed forms, a naive loop, and the authors' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ltcore.objective.terms.ifl.environments import class_totals, environment_weights, tail_weights
from tests.objective import toy

ONE_GROUP = torch.zeros(10, dtype=torch.int64)
FALLING = torch.arange(9, -1, -1, dtype=torch.float64) / 10  # .9, .8, ..., .0


def one_class(scores: Tensor, tail_ratio: float = 4.0, scaling: str = "published") -> Tensor:
    """Weights of one class that sum to 1, as the authors count them."""
    return tail_weights(scores, torch.zeros(len(scores), dtype=torch.int64), 1, tail_ratio, scaling) / len(scores)


def naive(scores: list[float], tail_ratio: float, scaling: str) -> list[float]:
    """Mean-1 weights of one group, step by step."""
    size = len(scores)
    if size < 5:
        return [1.0] * size
    share, least = (0.02, 0.1) if scaling == "quantile" else (0.0, 1.0)
    low, high = np.quantile(scores, [share, 1 - share])
    value = [1 - min(max((p - low) / (high - low + 1e-9), 0), 1) + 1e-5 for p in scores]
    ranked = sorted(value)
    head, tail = ranked[: int(0.8 * size)], ranked[size - int(0.2 * size) :]
    ratio = (sum(tail) / len(tail)) / (sum(head) / len(head)) + 1e-5
    exponent = min(max(math.log(tail_ratio) / math.log(ratio), least), 10.0)
    weight = [v**exponent + 1e-12 for v in value]
    return [w * size / sum(weight) for w in weight]


def test_closed_form() -> None:
    expected = [0, 0.008022, 0.023690, 0.044635, 0.069963, 0.099147, 0.131822, 0.167719, 0.206628, 0.248375]
    ours = one_class(FALLING)
    torch.testing.assert_close(ours, toy.f64(expected), rtol=0, atol=1e-6)
    assert float(ours[-2:].sum()) == pytest.approx(0.455002, abs=1e-6)
    torch.testing.assert_close(one_class(0.5 + FALLING / 2), ours, rtol=0, atol=1e-6)  # affine maps of scores cancel


@pytest.mark.parametrize("scaling", ["published", "quantile"])
def test_equal_scores_and_small_groups_are_uniform(scaling: str) -> None:
    torch.testing.assert_close(one_class(toy.f64([0.3] * 10), scaling=scaling), toy.f64([0.1] * 10))
    torch.testing.assert_close(one_class(toy.f64([0.9, 0.1, 0.5, 0.2]), scaling=scaling), toy.f64([0.25] * 4))


def test_an_outlier_takes_all_only_in_the_published_form() -> None:
    scores = toy.f64([0.9, 0.9, 0.9, 0.9, 0.1])
    assert float(one_class(scores)[-1]) == pytest.approx(0.99996, abs=1e-5)
    assert float(one_class(scores, scaling="quantile")[-1]) == pytest.approx(0.5, abs=0.01)
    two_valued = toy.f64([0.99] * 8 + [0.2] * 2)
    assert float(one_class(two_valued)[-2:].sum()) == pytest.approx(0.99996, abs=1e-5)
    assert float(one_class(two_valued, scaling="quantile")[-2:].sum()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("tail_ratio", "share"), [(1.0, 0.2), (2.0, 1 / 3), (4.0, 0.5), (16.0, 0.8)])
def test_of_two_values_the_bad_fifth_weighs_its_ratio_over_the_ratio_and_four(tail_ratio: float, share: float) -> None:
    weights = one_class(toy.f64([0.99] * 80 + [0.2] * 20), tail_ratio, "quantile")
    assert float(weights[-20:].sum()) == pytest.approx(share, abs=1e-3)


def test_evenly_spread_scores_fall_short_of_the_aimed_share() -> None:
    """The exponent fits the ratio of the means before it is applied: r = 2.25, x = 1.7095, and .4537 instead of .5."""
    weights = one_class(torch.linspace(1, 0, 100_000, dtype=torch.float64))
    assert float(weights[-20_000:].sum()) == pytest.approx(0.4537, abs=1e-4)
    tail, head = weights[-20_000:].mean(), weights[:-20_000].mean()
    assert float(tail / head) == pytest.approx(3.322, abs=1e-3)


@pytest.mark.parametrize("scaling", ["published", "quantile"])
@pytest.mark.parametrize("tail_ratio", [2.0, 4.0])
def test_equals_a_naive_loop_for_any_order_and_empty_classes(scaling: str, tail_ratio: float) -> None:
    gen = torch.Generator().manual_seed(0)
    scores = torch.rand(97, generator=gen, dtype=torch.float64)
    group = torch.tensor([0, 2, 2, 2, 5, 5, 7])[torch.randint(7, (97,), generator=gen)]
    ours = tail_weights(scores, group, 9, tail_ratio, scaling)
    for g in group.unique():
        expected = naive(scores[group == g].tolist(), tail_ratio, scaling)
        torch.testing.assert_close(ours[group == g], toy.f64(expected), rtol=1e-9, atol=1e-9)
    falls = scores[group == 2].argsort()
    assert (ours[group == 2][falls].diff() <= 0).all()


COUNTS = torch.tensor([14, 4, 2])  # prior (.7, .2, .1)
LABELS = torch.repeat_interleave(torch.arange(3), COUNTS)


def weights(
    env_type: str, num_envs: int = 2, seen_N: Tensor | None = None, correct_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight of each sample [E, N] and total of each class [E, C]."""
    seen_N = torch.ones(20, dtype=torch.bool) if seen_N is None else seen_N
    scores = torch.rand(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    correct_N = scores > 0.3 if correct_N is None else correct_N
    labels = torch.where(seen_N, LABELS, 0)  # what the table knows of a sample that never came
    relative_EN, factor_EC = environment_weights(
        scores * seen_N,
        correct_N,
        seen_N,
        labels,
        COUNTS,
        env_type=env_type,
        num_envs=num_envs,
        tail_ratio=4.0,
        scaling="quantile",
    )
    totals_EC = class_totals(relative_EN, factor_EC, seen_N, labels, COUNTS)
    weights_EN = relative_EN * factor_EC[:, LABELS]
    sums_EC = torch.zeros_like(totals_EC).index_add_(1, LABELS, weights_EN)
    torch.testing.assert_close(sums_EC, totals_EC)
    return weights_EN, totals_EC


@pytest.mark.parametrize("env_type", ["intra", "inter", "inter_intra", "correctness", "uniform"])
@pytest.mark.parametrize("seen", ["all", "some", "none"])
def test_every_environment_has_mean_one(env_type: str, seen: str) -> None:
    seen_N = {"all": torch.ones(20), "some": torch.arange(20) % 3, "none": torch.zeros(20)}[seen] > 0
    for num_envs in (2,) if env_type == "correctness" else (2, 3, 4):
        weights_EN, _ = weights(env_type, num_envs, seen_N)
        torch.testing.assert_close(weights_EN.mean(1), torch.ones(num_envs, dtype=torch.float64))
        assert (weights_EN >= 0).all()


def test_first_environment_is_the_data_as_they_are() -> None:
    for env_type in ("intra", "inter", "inter_intra", "uniform"):
        assert torch.equal(weights(env_type, 3)[0][0], torch.ones(20, dtype=torch.float64))


def test_intra_balances_the_classes_also_where_samples_are_unseen() -> None:
    for seen_N in (None, torch.arange(20) % 3 > 0):
        weights_EN, totals_EC = weights("intra", seen_N=seen_N)
        torch.testing.assert_close(totals_EC[1], toy.f64([20 / 3] * 3))
        if seen_N is not None:  # an unseen sample weighs what the mean of its class weighs
            torch.testing.assert_close(weights_EN[1, ~seen_N], (20 / 3 / COUNTS)[LABELS][~seen_N].double())


def test_mixture_prior() -> None:
    """Half the prior and half uniform: (.7, .2, .1) becomes (.516667, .266667, .216667)."""
    share_C = weights("intra")[1].mean(0) / 20
    torch.testing.assert_close(share_C, toy.f64([0.516667, 0.266667, 0.216667]), rtol=0, atol=1e-6)


def test_ladder_between_the_first_and_the_last_environment() -> None:
    """Three environments are those of tail ratios 1, 2 and 4."""
    scores, labels, seen = FALLING, ONE_GROUP, torch.ones(10, dtype=torch.bool)
    relative_EN, _ = environment_weights(
        scores,
        seen,
        seen,
        labels,
        torch.tensor([10]),
        env_type="inter",
        num_envs=3,
        tail_ratio=4.0,
        scaling="published",
    )
    for env, ratio in [(1, 2.0), (2, 4.0)]:
        torch.testing.assert_close(relative_EN[env], tail_weights(scores, labels, 1, ratio, "published"))


def test_correctness_splits_right_from_wrong() -> None:
    correct_N = torch.arange(20) < 15
    weights_EN, _ = weights("correctness", correct_N=correct_N)
    torch.testing.assert_close(weights_EN[0], correct_N * 20 / 15, check_dtype=False)
    torch.testing.assert_close(weights_EN[1], ~correct_N * 20 / 5, check_dtype=False)


@pytest.mark.parametrize("all_right", [True, False])
def test_correctness_without_the_other_kind_is_neutral(all_right: bool) -> None:
    weights_EN, _ = weights("correctness", correct_N=torch.full((20,), all_right))
    assert torch.equal(weights_EN, torch.ones(2, 20, dtype=torch.float64))
