"""Weights by class of cross-entropy and focal loss: closed forms, torch's own weighted loss, streams, wrong tables."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ltcore.errors import ConfigError
from ltcore.objective.class_weights import inverse_weights, own_weights, weight_table, weighted
from ltcore.objective.interface import Base
from ltcore.objective.losses.class_balanced import ClassBalanced
from ltcore.objective.losses.cross_entropy import CrossEntropy
from ltcore.objective.losses.focal import Focal
from tests.objective import toy

NAMES = ("cat", "dog", "no")
STATS = dataclasses.replace(toy.make_stats([500, 50, 5]), class_names=NAMES)
LABELS = torch.tensor([0, 1, 2, 1])
LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
INVERSE = (1 / toy.f64([500, 50, 5])) * 3 / (1 / toy.f64([500, 50, 5])).sum()


def losses(base: type[Base], log_prior_C: Tensor | None = None, **options: Any) -> Tensor:
    loss = base(base.Config(**options), STATS, toy.make_dims(1, STATS))  # type: ignore[attr-defined]
    context = toy.make_context(STATS, 0.9)
    context = context if log_prior_C is None else dataclasses.replace(context, log_prior_C=log_prior_C)
    return loss(toy.make_output(LOGITS), LABELS, context)


def test_auto_is_inverse_frequency_with_mean_one() -> None:
    weights_C = inverse_weights(torch.tensor([500, 50, 5]))
    torch.testing.assert_close(weights_C, toy.f64([0.0270270, 0.270270, 2.702703]), rtol=0, atol=1e-6)
    assert float(weights_C.mean()) == pytest.approx(1)
    plain_B = losses(CrossEntropy)
    torch.testing.assert_close(losses(CrossEntropy, class_weights="auto"), plain_B * INVERSE[LABELS])
    # the effective number tends to it
    torch.testing.assert_close(
        losses(ClassBalanced, beta=1 - 1e-9), losses(CrossEntropy, class_weights="auto"), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("table", [{"no": 5.0, "cat": 0.5}, [0.5, 1.0, 5.0], '{"no": 5, "cat": 0.5}', "[0.5, 1, 5]"])
def test_the_weighted_mean_is_that_of_torch(table: Any) -> None:
    weight = toy.f64([0.5, 1, 5])
    theirs = F.cross_entropy(LOGITS, LABELS, weight=weight)
    ours_B = losses(CrossEntropy, class_weights=table, weight_norm="batch_sum")
    torch.testing.assert_close(ours_B.mean(), theirs)
    torch.testing.assert_close(losses(CrossEntropy, class_weights=table), losses(CrossEntropy) * weight[LABELS])


def test_a_batch_of_classes_that_do_not_count_has_no_loss() -> None:
    assert weighted(torch.ones(4), torch.zeros(4), "batch_sum").tolist() == [0.0] * 4


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_focal_is_weighted_by_the_class_of_the_sample(form: str) -> None:
    plain_B = losses(Focal, form=form)
    weighted_B = losses(Focal, form=form, class_weights={"dog": 3.0})
    torch.testing.assert_close(weighted_B, plain_B * toy.f64([1, 3, 1])[LABELS])


@pytest.mark.parametrize("base", [CrossEntropy, Focal])
def test_without_weights_the_loss_is_bitwise_the_plain_one(base: type[Base]) -> None:
    assert torch.equal(losses(base), losses(base, class_weights=None, weight_norm="batch_sum"))
    assert base.balances(base.Config()) == "" and not base.gathers(base.Config(weight_norm="batch_sum"))  # type: ignore[attr-defined]


def test_auto_balances_once_in_any_stream_and_a_table_stays_as_it_is() -> None:
    shares_C = toy.f64([0.5, 0.3, 0.2])
    natural_C = toy.f64([500, 50, 5]) / 555
    plain_B = losses(CrossEntropy)
    corrected_C = INVERSE * natural_C / shares_C
    torch.testing.assert_close(
        losses(CrossEntropy, shares_C.log(), class_weights="auto"), plain_B * corrected_C[LABELS]
    )
    per_class_C = shares_C * corrected_C
    torch.testing.assert_close(per_class_C, per_class_C[:1].expand(3), msg="classes contribute equally")
    table = {"cat": 2.0}
    assert torch.equal(
        losses(CrossEntropy, shares_C.log(), class_weights=table), losses(CrossEntropy, class_weights=table)
    )


def test_natural_weights_undo_a_balanced_stream() -> None:
    weighted_B = losses(CrossEntropy, toy.f64([1 / 3] * 3).log(), class_weights="natural")
    torch.testing.assert_close(weighted_B, losses(CrossEntropy) * 3 * (toy.f64([500, 50, 5]) / 555)[LABELS])
    published_B = losses(CrossEntropy, class_weights="natural", weight_norm="batch_sum")
    largest_is_1_C = toy.f64([500, 50, 5]) / 500
    total = largest_is_1_C[LABELS].sum()
    torch.testing.assert_close(published_B, losses(CrossEntropy) * len(LABELS) * largest_is_1_C[LABELS] / total)
    assert CrossEntropy.balances(CrossEntropy.Config(class_weights="natural")) == ""


def test_what_balances_says_so() -> None:
    assert CrossEntropy.balances(CrossEntropy.Config(class_weights="auto")) == (
        "weighs the classes by inverse frequency (class_weights)"
    )
    assert "by a table" in Focal.balances(Focal.Config(class_weights={"cat": 2.0}))
    assert CrossEntropy.gathers(CrossEntropy.Config(class_weights="auto", weight_norm="batch_sum"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("effective_number", "got 'effective_number': weights by effective number are objective.base=class_balanced"),
        ("balanced", "class_weights must be null, auto, natural, a table such as"),
        ("{cat: 2}", "class_weights is no table"),
        ({"cat": -1}, "class_weights must be finite numbers >= 0, got -1"),
        ({"cat": "much"}, "got 'much'"),
        ({"cat": True}, "got True"),
        ([1.0, float("inf"), 1.0], "got inf"),
        ([float("nan")] * 3, "got nan"),
        ("[1, [2], 3]", r"got \[2\]"),
        ([10**400, 1, 1], "got 1000"),
        ([0, 0, 0], "class_weights must have a weight above 0"),
        ({}, "class_weights must have a weight above 0"),
        ("[" * 100_000, "class_weights is no table"),
    ],
)
def test_what_is_no_table_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CrossEntropy.Config(class_weights=value)


def test_names_are_those_of_the_data() -> None:
    assert own_weights({"no": 2}, STATS).tolist() == [1, 1, 2]
    with pytest.raises(
        ConfigError, match=r"no class is named 'dgo'. Did you mean dog\? There are 3 classes \(cat, dog, no\)"
    ):
        own_weights({"dgo": 2}, STATS)
    with pytest.raises(ConfigError, match="list of 2 weights for 3 classes"):
        own_weights([1.0, 2.0], STATS)
    with pytest.raises(ConfigError, match="the classes have no names here"):
        own_weights({"cat": 2}, dataclasses.replace(STATS, class_names=()))
    assert weight_table(json.dumps({"7": 1})) == {"7": 1.0}
