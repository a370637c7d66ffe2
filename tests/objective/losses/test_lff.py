"""LFF: closed forms, and what has a gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltcore.errors import ConfigError
from ltcore.objective.losses.lff import Lff
from tests.objective import toy

STATS = toy.make_stats([7, 2, 1])
LABELS = torch.tensor([0, 1, 2])
TARGET = toy.f64([[1, 0, -1], [0.5, 2, 0], [3, -1, 0]])
BIASED = toy.f64([[2, 0, 0], [1, 0, -1], [0, 0.5, 1]])


def lff(target: Tensor, biased: Tensor, labels: Tensor = LABELS, q: float = 0.7) -> Tensor:
    base = Lff(Lff.Config(q=q), STATS, toy.make_dims(1, STATS))
    out = replace(toy.make_output(target), twin_logits_BC=biased)
    return base(out, labels, toy.make_context(STATS))


def of_loss(*losses: float) -> Tensor:
    """[B, 2] logits whose cross-entropy with class 0 is as given."""
    return toy.f64([[0.0, math.log(math.exp(loss) - 1)] for loss in losses])


def test_closed_form_values() -> None:
    """CE_b = 2 and CE_d = 0.5 give the weight 0.8; q p^q is 0.430901 at p = 0.5 and 0.650231 at p = 0.9."""
    zeros = torch.zeros(1, dtype=torch.int64)
    twin_alone = 0.7 * math.exp(-2 * 0.7) * 2
    assert lff(of_loss(0.5), of_loss(2.0), zeros).item() == pytest.approx(twin_alone + 0.8 * 0.5, abs=1e-8)
    for probability, factor in [(0.5, 0.430901), (0.9, 0.650231)]:
        ce = -math.log(probability)
        found = lff(of_loss(ce), of_loss(ce), zeros).item()
        assert found == pytest.approx(factor * ce + ce / 2, abs=1e-6), "twins that agree halve the loss"


def test_gradients_are_those_of_generalized_and_of_weighted_cross_entropy() -> None:
    target, biased = TARGET.clone().requires_grad_(), BIASED.clone().requires_grad_()
    to_target, to_biased = torch.autograd.grad(lff(target, biased).sum(), (target, biased))
    easy_B, hard_B = (cross_entropy(logits, LABELS, reduction="none") for logits in (BIASED, TARGET))
    weight_B = easy_B / (easy_B + hard_B)
    plain = TARGET.softmax(1) - torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(to_target, weight_B[:, None] * plain, atol=1e-7, rtol=0)
    again = BIASED.clone().requires_grad_()
    generalized = (1 - again.softmax(1).diagonal() ** 0.7).sum()
    torch.testing.assert_close(to_biased, torch.autograd.grad(generalized, again)[0])


def test_the_weight_grows_with_what_the_twin_does_not_know() -> None:
    zeros = torch.zeros(3, dtype=torch.int64)
    target = of_loss(0.5, 0.5, 0.5).requires_grad_()
    (grad,) = torch.autograd.grad(lff(target, of_loss(0.1, 0.5, 4.0), zeros).sum(), target)
    size = grad.abs().sum(1)
    assert size[0] < size[1] < size[2]
    torch.testing.assert_close(size / size[1], toy.f64([2 * 0.1 / 0.6, 1, 2 * 4 / 4.5]), atol=1e-7, rtol=0)


def test_nothing_is_lost_where_both_know_everything() -> None:
    sure = toy.f64([[500, 0, 0]]).requires_grad_()
    loss = lff(sure, sure.detach(), torch.tensor([0]))
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss.sum(), sure)[0].isfinite().all()


def test_q_is_positive() -> None:
    with pytest.raises((ValueError, ConfigError), match="q must be"):
        Lff.Config(q=0.0)
