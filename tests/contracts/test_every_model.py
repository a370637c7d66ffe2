"""What every row of MODELS, with every head, must do."""

from __future__ import annotations

import pytest
import torch

from ltcore.models.heads import HEADS
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.registry import MODELS
from tests.contracts.networks import NEEDS, STAGES

NETWORKS = [pytest.param(name, marks=pytest.mark.slow) if name == "resnet152" else name for name in MODELS]
"""The largest costs seconds a test."""


def build(name: str, **fields: object) -> tuple[LongTailNet, torch.Tensor]:
    net = LongTailNet(ModelConfig(name=name, **fields), 12, NEEDS, seed=0)  # type: ignore[arg-type]
    size = max(32, net.backbone.min_px)
    return net, torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def check_step(net: LongTailNet, images: torch.Tensor) -> None:
    """Finite, consistent, and with a gradient for every parameter."""
    out = net(images)
    assert out.logits_BC.shape == (4, 12) and out.features_BD.shape == (4, net.feature_dim)
    assert out.fmap_BDhw is not None and out.fmap_BDhw.shape[:2] == (4, net.feature_dim)
    assert out.query_Bd is not None
    torch.testing.assert_close(out.fmap_BDhw.mean((2, 3)), out.features_BD)
    weights = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    ((out.logits_BC * weights).sum() + out.query_Bd[:, 0].sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # a linear bias before a batch norm has no effect on the loss: its gradient is rounding noise or zero
        if name != "projection.layers.linear0.bias":
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", NETWORKS)
def test_model(name: str) -> None:
    net, images = build(name, ghost_batch=2)
    check_step(net, images)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(images)
    assert out.logits_BC.dtype == torch.float32 and out.logits_BC.isfinite().all()

    net.eval()
    with torch.no_grad():
        together = net(images).logits_BC
        exclusive = torch.cat([net(image[None]).logits_BC for image in images[:2]])
        torch.testing.assert_close(together[:2], exclusive, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("head", HEADS)
def test_head(head: str, num_experts: int) -> None:
    net, images = build("resnet8", head=head, num_experts=num_experts)
    out = net(images)
    assert out.logits_BC.shape == ((4, 12) if num_experts == 1 else (4, 3, 12))
    assert out.mean_logits_BC.shape == (4, 12)
    out.logits_BC.square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        if not parameter_name.startswith("projection."):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("num_experts", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_stages(name: str, num_experts: int) -> None:
    """Their pooled features: named as in the table, of the sizes told, and asking changes no other output."""
    net, images = build(name, num_experts=num_experts)
    assert tuple(net.stage_dims) == MODELS[name].stages
    plain = net.eval()(images)
    assert plain.stage_features_BD is None
    net.needs = NEEDS | STAGES
    out = net(images)
    assert torch.equal(out.logits_BC, plain.logits_BC) and torch.equal(out.features_BD, plain.features_BD)
    assert out.stage_features_BD is not None and tuple(out.stage_features_BD) == MODELS[name].stages
    for stage, features_BD in out.stage_features_BD.items():
        assert features_BD.shape == (4, net.stage_dims[stage])
        number = stage.removeprefix("stage")
        trunk = dict(net.backbone.trunk.named_children())
        if f"layer{number}" in trunk:  # a stage of the trunk, or one that every expert has for itself
            assert net.stage_dims[stage] == list(trunk[f"layer{number}"].parameters())[-1].numel()
        else:
            assert net.stage_dims[stage] % num_experts == 0
