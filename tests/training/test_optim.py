"""Schedules against the published recipe, and parameter groups."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from ltcore.config.schema import OptimConfig
from ltcore.training.optim import build_optimizer, lr_factor


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 0.2), (3, 0.8), (4, 1.0), (159, 1.0), (160, 0.01), (179, 0.01), (180, 1e-4), (199, 1e-4)]
)
def test_the_ldam_recipe_epoch_by_epoch(epoch: int, factor: float) -> None:
    assert lr_factor(OptimConfig(), epoch, 200) == pytest.approx(factor)


def test_cosine_falls_from_one_to_almost_zero_after_warmup() -> None:
    cfg = OptimConfig(schedule="cosine", warmup=0.1)
    factors = [lr_factor(cfg, e, 40) for e in range(40)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))
    assert factors[20] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.01


def test_pacos_cosine_begins_at_the_peak_after_warmup() -> None:
    """Rate x (1 + cos(pi (e - W + 1) / (E - W + 1))) / 2 from 0-based epoch W on: Places-LT has 30 epochs, 5 of warm-up."""
    cfg = OptimConfig(schedule="cosine_after_warmup", warmup=0.167)
    factors = [lr_factor(cfg, e, 30) for e in range(30)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == pytest.approx((1 + math.cos(math.pi / 26)) / 2)
    assert factors[17] == pytest.approx(0.5) and factors[29] == pytest.approx((1 + math.cos(math.pi * 25 / 26)) / 2)


@pytest.mark.parametrize("epochs", [1, 10, 20, 30, 59])
def test_a_warmup_below_two_epochs_rises_with_every_step(epochs: int) -> None:
    cfg, steps = OptimConfig(), 100
    rates = [lr_factor(cfg, e, epochs, (s + 1) / steps) for e in range(min(epochs, 3)) for s in range(steps)]
    ramp = cfg.warmup * epochs * steps
    for number, rate in enumerate(rates, 1):
        assert rate == pytest.approx(min(1.0, number / ramp) if number <= 0.8 * epochs * steps else rate)
    assert rates[0] == pytest.approx(min(1.0, 1 / ramp)) and max(rates) == 1.0


@pytest.mark.parametrize(("warmup", "epochs"), [(0.025, 200), (0.025, 400), (0.025, 100), (0.1, 48), (0.167, 30)])
def test_published_warmups_rise_by_epochs_whatever_the_step(warmup: float, epochs: int) -> None:
    cfg = OptimConfig(warmup=warmup)
    for epoch in range(round(warmup * epochs)):
        rates = {lr_factor(cfg, epoch, epochs, share) for share in (0.01, 0.5, 1.0)}
        assert rates == {(epoch + 1) / round(warmup * epochs)}


def test_the_same_fractions_hold_for_another_number_of_epochs() -> None:
    assert [lr_factor(OptimConfig(), e, 20) for e in (15, 16, 17, 18)] == pytest.approx([1, 0.01, 0.01, 1e-4])


def test_every_parameter_is_in_exactly_one_group_and_bias_can_go_without_decay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for both in (True, False):
        optimizer = build_optimizer(OptimConfig(decay_norm_and_bias=both), module)
        inside = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(inside) == sorted(id(p) for p in module.parameters())
        bare = [p for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]]
        assert len(bare) == (0 if both else 3)


def test_momentum_is_really_used() -> None:
    parameter = nn.Parameter(torch.ones(()))
    module = nn.Module()
    module.p = parameter
    optimizer = build_optimizer(OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.0), module)
    for _ in range(2):
        parameter.grad = torch.ones(())
        optimizer.step()
    assert float(parameter.detach()) == pytest.approx(1 - 0.1 - 0.1 * 1.9)
