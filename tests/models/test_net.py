from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ltcore.models.net import LongTailNet, ModelConfig, init_parameters_

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def build(needs: set[str] | None = None, seed: int = 0, num_classes: int = 7, **fields: Any) -> LongTailNet:
    return LongTailNet(ModelConfig(name="resnet8", **fields), num_classes, frozenset(needs or ()), seed)


def test_only_what_is_needed_is_built_and_returned() -> None:
    out = build()(IMAGES)
    assert out.logits_BC.shape == (6, 7) and out.features_BD.shape == (6, 64)
    assert out.fmap_BDhw is None and out.query_Bd is None and out.key_Bd is None
    net = build({"fmap", "query", "key"}, projection_dim=5)
    out = net(IMAGES)
    assert out.fmap_BDhw is not None and out.fmap_BDhw.shape == (6, 64, 4, 4)
    assert out.query_Bd is not None and out.query_Bd.shape == (6, net.projection_dim)
    assert out.key_Bd is None
    torch.testing.assert_close(out.fmap_BDhw.mean((2, 3)), out.features_BD)
    torch.testing.assert_close(out.query_Bd.norm(dim=1), torch.ones(6))
    assert build({"key"}).projection is None


def test_a_second_projection_is_another_one_and_maps_of_stages_are_what_is_pooled() -> None:
    net = build({"query", "own_query", "stage1", "fmap/stage1", "fmap/stage2"}, projection_dim=5)
    out = net(IMAGES)
    assert out.query_Bd is not None and out.own_query_Bd is not None
    assert out.own_query_Bd.shape == out.query_Bd.shape and not torch.equal(out.own_query_Bd, out.query_Bd)
    torch.testing.assert_close(out.own_query_Bd.norm(dim=1), torch.ones(6))
    assert out.stage_fmaps_BDhw is not None and out.stage_features_BD is not None
    assert {name: tuple(fmap.shape[1:]) for name, fmap in out.stage_fmaps_BDhw.items()} == {
        "stage1": (16, 16, 16),
        "stage2": (32, 8, 8),
    }
    assert list(out.stage_features_BD) == ["stage1"]
    torch.testing.assert_close(out.stage_fmaps_BDhw["stage1"].mean((2, 3)), out.stage_features_BD["stage1"])
    assert (
        build({"stage1"})(IMAGES).stage_fmaps_BDhw is None and build({"fmap/stage1"})(IMAGES).stage_features_BD is None
    )


def test_a_projection_changes_no_other_initial_value_and_no_output() -> None:
    plain, projecting = build(), build({"query", "own_query", "fmap", "fmap/stage2"})
    mine = dict(projecting.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, mine[name]), name
    assert torch.equal(plain(IMAGES).logits_BC, projecting(IMAGES).logits_BC)


def test_initial_values_are_a_function_of_seed_and_name() -> None:
    first, again, other = build(), build(), build(seed=1)
    wider = dict(build(num_classes=9).backbone.named_parameters())
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        if parameter.dim() > 1:
            assert not torch.equal(parameter, other.get_parameter(name)), name
    for name, parameter in first.backbone.named_parameters():
        assert torch.equal(parameter, wider[name]), name


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build({"query"})
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_distribution_is_he_normal() -> None:
    net = build({"query"})
    conv = net.get_parameter("backbone.branches.0.layer3.0.conv2.weight")
    assert conv.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    linear = net.get_parameter("projection.layers.linear0.weight")
    assert linear.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert torch.equal(net.get_parameter("heads.0.bias"), torch.zeros(7))
    assert torch.equal(net.get_parameter("backbone.trunk.bn1.weight"), torch.ones(16))
    trunk = LongTailNet(ModelConfig(name="resnet50"), 5, frozenset(), 0).get_parameter("backbone.trunk.conv1.weight")
    assert trunk.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.03)  # fan_out


def test_state_round_trip() -> None:
    net, other = build({"query"}, ghost_batch=3), build({"query"}, ghost_batch=3, seed=5)
    net(IMAGES)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(IMAGES).logits_BC, other.eval()(IMAGES).logits_BC)


def test_a_module_without_a_rule_is_refused() -> None:
    with pytest.raises(TypeError, match=r"0\.weight of Embedding"):
        init_parameters_(nn.Sequential(nn.Embedding(3, 2)), 0, "fan_in")


def test_experts_give_stacked_logits_and_concatenated_features() -> None:
    net = build({"fmap", "query"}, num_experts=3, head="cosine")
    out = net(IMAGES)
    assert out.logits_BC.shape == (6, 3, 7)
    assert out.features_BD.shape == (6, net.feature_dim) == (6, 144)
    assert out.fmap_BDhw is not None
    torch.testing.assert_close(out.fmap_BDhw.mean((2, 3)), out.features_BD)
    for e, head in enumerate(net.heads):
        torch.testing.assert_close(head(out.features_BD[:, 48 * e : 48 * (e + 1)]), out.logits_BC[:, e])
    torch.testing.assert_close(out.mean_logits_BC, out.logits_BC.mean(1))
    assert not torch.equal(out.logits_BC[:, 0], out.logits_BC[:, 1])
    assert build(num_experts=2, expert_width=1.0).feature_dim == 128


def test_double_images_stay_double() -> None:
    net = build({"fmap", "query"}).double()
    out = net(IMAGES.double())
    for tensor in (out.logits_BC, out.features_BD, out.fmap_BDhw, out.query_Bd):
        assert tensor is not None and tensor.dtype == torch.float64
    torch.testing.assert_close(out.logits_BC.float(), build()(IMAGES).logits_BC, rtol=1e-4, atol=1e-4)


def test_autocast_keeps_logits_and_query_in_float32() -> None:
    net = build({"fmap", "query"})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(IMAGES)
    assert out.logits_BC.dtype == out.features_BD.dtype == torch.float32
    assert out.query_Bd is not None and out.query_Bd.dtype == torch.float32
    assert out.fmap_BDhw is not None and out.fmap_BDhw.dtype == torch.bfloat16
    assert torch.equal(net.heads[0](out.features_BD), out.logits_BC)


def test_channels_last_goes_through_to_the_feature_map() -> None:
    net = build({"fmap"}).to(memory_format=torch.channels_last)
    out = net(IMAGES.to(memory_format=torch.channels_last))
    assert out.fmap_BDhw is not None and out.fmap_BDhw.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.logits_BC, build()(IMAGES).logits_BC, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "resnet33"),
        ("head", "quadratic"),
        ("cosine_scale", 0.0),
        ("cosine_scale", float("nan")),
        ("num_experts", 0),
        ("expert_width", 1.5),
        ("projection_dim", 0),
        ("projection_hidden", -1),
        ("key_decay", 1.1),
        ("ghost_batch", 1),
    ],
)
def test_wrong_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field} .*got"):
        ModelConfig(**{field: value})
