from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ltcore.errors import ConfigError
from ltcore.models.backbones import BasicBlock, pool
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.registry import MODELS


def count_macs(net: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image, counted from shapes while it runs."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        outputs = output[0].numel()
        total += outputs * (module.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    net(images)
    for hook in hooks:
        hook.remove()
    return total


def test_resnet32_has_the_published_size() -> None:
    net = LongTailNet(ModelConfig(name="resnet32"), 100, frozenset(), seed=0).eval()
    assert sum(p.numel() for p in net.parameters()) == 470_004
    assert count_macs(net, torch.zeros(1, 3, 32, 32)) == 68_868_352
    assert net.feature_dim == 64


@pytest.mark.parametrize("name, convolutions", [("resnet8", 7), ("resnet20", 19), ("resnet32", 31), ("resnet56", 55)])
def test_depth(name: str, convolutions: int) -> None:
    net = LongTailNet(ModelConfig(name=name), 10, frozenset(), seed=0)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == convolutions


@pytest.mark.parametrize("name", ["resnet50", pytest.param("resnet152", marks=pytest.mark.slow), "resnext50_32x4d"])
def test_large_networks_are_torchvisions(name: str) -> None:
    net = LongTailNet(ModelConfig(name=name), 10, frozenset(), seed=0).eval()
    reference = getattr(torchvision.models, name)(num_classes=10).eval()
    # the same function once it holds the same tensors, which lie in the same order
    theirs = reference.state_dict()
    mine = dict(zip(theirs, net.state_dict().values(), strict=True))
    reference.load_state_dict(mine)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(images).logits_BC, reference(images))


def test_three_experts_cost_what_ride_publishes() -> None:
    cfg = ModelConfig(name="resnet32", num_experts=3, head="cosine")
    net = LongTailNet(cfg, 100, frozenset(), seed=0).eval()
    assert 0.095e9 < count_macs(net, torch.zeros(1, 3, 32, 32)) < 0.115e9
    assert net.feature_dim == 3 * 48
    assert net.backbone(torch.zeros(1, 3, 32, 32))[0].shape == (1, 48, 8, 8)


def test_experts_of_bottleneck_networks_have_1536_features() -> None:
    net = LongTailNet(ModelConfig(name="resnext50_32x4d", num_experts=2), 10, frozenset(), seed=0)
    assert net.backbone.expert_dim == 1536
    assert net.feature_dim == 3072


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = BasicBlock(4, 8, 2, nn.BatchNorm2d).eval()
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.rand(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    for b in range(2):
        for channel in range(4):
            for i in range(3):
                for j in range(3):
                    expected[b, 2 + channel, i, j] = x[b, channel, 2 * i, 2 * j]
    assert torch.equal(block(x), expected)


def test_small_images_are_refused_in_words() -> None:
    net = LongTailNet(ModelConfig(name="resnet50"), 10, frozenset(), seed=0)
    with pytest.raises(ConfigError, match=r"at least 64x64 px, got 32x32.*data\.image_size"):
        net(torch.zeros(2, 3, 32, 32))


def test_pool_accumulates_half_types_in_float32() -> None:
    fmap = torch.rand(2, 3, 16, 16)
    assert pool(fmap.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(pool(fmap.bfloat16()), fmap.bfloat16().float().mean((2, 3)))
    assert pool(fmap.double()).dtype == torch.float64


def test_every_row_says_what_it_is() -> None:
    for name, row in MODELS.items():
        assert row.summary and row.paper, name


@pytest.mark.parametrize("name", ["resnet8", "resnet32", "resnet50"])
def test_a_bilateral_network_has_its_last_block_twice(name: str) -> None:
    plain, net = (
        LongTailNet(ModelConfig(name=name, bilateral=b), 10, frozenset(), seed=0).eval() for b in (False, True)
    )
    block = list(plain.backbone.branches[0].children())[-1][-1]
    more = sum(p.numel() for p in block.parameters()) + plain.feature_dim * 10
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in plain.parameters()) + more
    assert net.feature_dim == 2 * plain.feature_dim and net.stage_dims == plain.stage_dims
    names = {key.removeprefix("backbone.trunk.").removeprefix("backbone.branches.0.") for key in plain.state_dict()}
    for key in net.state_dict():
        assert (
            key.removeprefix("backbone.trunk.")
            .removeprefix("backbone.branches.0.")
            .removeprefix("backbone.branches.1.")
            in names
        ), key
    first, second = (dict(branch.named_parameters()) for branch in net.backbone.branches)
    assert not any(torch.equal(value, second[key]) for key, value in first.items() if value.ndim > 1)

    images = torch.randn(2, 3, net.backbone.min_px, net.backbone.min_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out, half = net(images), net.of_pairs(images, images, 0.5)
        torch.testing.assert_close(half.features_BD, out.features_BD)
        torch.testing.assert_close(half.logits_BC, out.logits_BC)
        alone = net.of_pairs(images, 1e3 * images, 1.0).features_BD
    torch.testing.assert_close(alone[:, : plain.feature_dim], 2 * out.features_BD[:, : plain.feature_dim])
    assert torch.equal(alone[:, plain.feature_dim :], torch.zeros_like(alone[:, plain.feature_dim :]))
