"""What every row of MODELS, with every head, must do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ltcore.contracts import models
from ltcore.models.heads import HEADS
from ltcore.models.registry import MODELS

NETWORKS = [pytest.param(name, marks=pytest.mark.slow) if name == "resnet152" else name for name in MODELS]
"""The largest costs seconds a test."""


@pytest.mark.parametrize("contract", models.CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("name", NETWORKS)
def test_model(name: str, contract: Callable[[str], None]) -> None:
    contract(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_features_are_the_pooled_map(name: str) -> None:
    net, images = models.build(name)
    out = net(images)
    torch.testing.assert_close(out.fmap_BDhw.mean((2, 3)), out.features_BD)


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("head", HEADS)
def test_head(head: str, num_experts: int) -> None:
    net, images = models.build("resnet8", head=head, num_experts=num_experts)
    out = net(images)
    assert out.logits_BC.shape == ((4, 12) if num_experts == 1 else (4, 3, 12))
    assert out.mean_logits_BC.shape == (4, 12)
    out.logits_BC.square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        if not parameter_name.startswith("projection."):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("num_experts", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_stages_have_the_sizes_of_their_last_layers(name: str, num_experts: int) -> None:
    net, _ = models.build(name, num_experts=num_experts)
    trunk = dict(net.backbone.trunk.named_children())
    for stage, dim in net.stage_dims.items():
        number = stage.removeprefix("stage")
        if f"layer{number}" in trunk:  # a stage of the trunk, or one that every expert has for itself
            assert dim == list(trunk[f"layer{number}"].parameters())[-1].numel()
        else:
            assert dim % num_experts == 0
