"""Schedules against the published recipe, and parameter groups."""

from __future__ import annotations

import itertools

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
