"""Parts of a backbone that are trained: counts, statistics, updates of low rank against merged weights, adapters."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltcore.errors import ConfigError
from ltcore.models.adaptformer import Adapter, auto_bottleneck
from ltcore.models.blocks import blocks_of
from ltcore.models.ema import EmaCopy
from ltcore.models.lora import LoraConv2d, LoraLinear, add_lora_, lora_layers, merge_, merged
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.norm import average_running_stats_, running_stats
from ltcore.models.tune import AdaptFormerConfig, LoraConfig, count, tune_

SHARES = {"full": 470_004, "head": 6_500, "bias": 7_636, "norm": 8_772, "lora": 92_988, "partial:1": 80_484}
"""Trained parameters of ResNet-32 with 100 classes: 100 * 65 of the classifier, 1,136 channels of batch norm with a bias and a
weight each, and 2 * 9 * 64^2 + 4 * 64 in the last block."""


@dataclass(frozen=True)
class Keys:
    tune: str
    lora: LoraConfig = field(default_factory=LoraConfig)
    adaptformer: AdaptFormerConfig = field(default_factory=AdaptFormerConfig)


def net_of(tune: str, name: str = "resnet8", **fields: Any) -> LongTailNet:
    return LongTailNet(ModelConfig(name=name, tune=tune, **fields), 4, frozenset({"query"}), 0)


def images(number: int = 6, side: int = 16) -> Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


def vit(name: str = "test_vit", side: int = 32) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, img_size=side, num_classes=0)
    return net


def tuned_vit(keys: Keys, num_classes: int = 100, **options: Any) -> nn.Module:
    net = vit(**options)
    tune_(net, keys, num_classes=num_classes, seed=0, scope="")
    return net


def randomize_(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("tune", SHARES)
def test_counts(tune: str) -> None:
    net = LongTailNet(ModelConfig(tune=tune), 100, frozenset(), 0)
    added = sum(p.numel() for name, p in net.named_parameters() if "lora_" in name)
    assert count(net) == (SHARES[tune], 470_004 + added)
    assert (added > 0) == (tune == "lora")


@pytest.mark.parametrize("tune", SHARES)
def test_begins_as_the_base(tune: str) -> None:
    """The same values under the same names, and bit for bit the same outputs."""
    net, plain = net_of(tune), net_of("full")
    for name, value in plain.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert torch.equal(net.eval()(images()).logits_BC, plain.eval()(images()).logits_BC)


def test_new_parameters_are_keyed_by_seed_and_name() -> None:
    cfg = ModelConfig(name="resnet8", tune="lora")
    first, again, other = (LongTailNet(cfg, 4, frozenset(), seed) for seed in (0, 0, 1))
    scoped = LongTailNet(cfg, 4, frozenset(), 0, scope="twin.")
    seen = set()
    for name, value in first.named_parameters():
        if name.endswith("lora_down"):
            assert torch.equal(value, again.get_parameter(name))
            assert not torch.equal(value, other.get_parameter(name))
            assert not torch.equal(value, scoped.get_parameter(name))
            inputs = value[0].numel()
            assert 0.5 < value.var().item() * 3 * inputs < 1.5
            seen.add(value.flatten()[0].item())
    assert len(seen) == 7


@pytest.mark.parametrize("tune", ["head", "lora", "norm", "bias", "partial:1"])
def test_statistics_of_frozen_layers_stay(tune: str) -> None:
    """In training mode, in copies for keys and for evaluation, and in a copy made while all was frozen."""
    net = net_of(tune).train()
    key, average = EmaCopy(net, 0.5), EmaCopy(net, 0.5, buffers="copy")
    moving = {"head": 0, "lora": 0, "norm": 7, "bias": 0, "partial:1": 2}[tune]
    assert len(running_stats(net.backbone)) == 2 * moving
    for each in (net, key.net):
        assert (
            sum(module.training for module in each.backbone.modules() if isinstance(module, nn.BatchNorm2d)) == moving
        )
    before = copy.deepcopy(net.state_dict())
    net(images())
    key.net(images())
    key.update(net)
    average.update(net)
    average_running_stats_(net)
    for each in (net, key.net, average.net):
        changed = {
            name
            for name, value in each.state_dict().items()
            if not torch.equal(value, before[name]) and "backbone" in name
        }
        assert not changed & net.frozen
        assert len([name for name in changed if name.endswith("running_mean")]) == moving


def test_ghost_batches_of_frozen_layers() -> None:
    net = net_of("lora", ghost_batch=2).train()
    assert torch.equal(net(images()).features_BD[:2], net(images()[:2]).features_BD)  # each image for itself


def test_blocks_in_depth_order() -> None:
    stem, *blocks = blocks_of(net_of("full").backbone)
    assert stem == ["trunk.conv1.weight", "trunk.bn1.weight", "trunk.bn1.bias"]
    assert [block[0] for block in blocks] == [
        "trunk.layer1.0.conv1.weight",
        "branches.0.layer2.0.conv1.weight",
        "branches.0.layer3.0.conv1.weight",
    ]
    experts = blocks_of(net_of("full", num_experts=3).backbone)
    assert [len(block) for block in experts] == [3, 6, 18, 18]
    both = blocks_of(net_of("full", bilateral=True).backbone)
    assert {name.split(".")[1] for name in both[-1]} == {"0", "1"}
    assert len(blocks_of(net_of("full", "resnet50").backbone)) == 17


@pytest.mark.parametrize(
    ("name", "last", "number"),
    [
        ("test_resnet", "layer4.0.", 4),
        ("test_convnext", "stages.3.blocks.1.", 9),
        ("test_efficientnet", "blocks.4.0.", 5),
        ("test_vit", "blocks.5.", 6),
    ],
)
def test_what_follows_the_last_block_belongs_to_it(name: str, last: str, number: int) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=0)
    _, *blocks = blocks_of(net)
    assert any(parameter.startswith(last) for parameter in blocks[-1]) and len(blocks) == number
    assert sum(map(len, blocks_of(net))) == len(list(net.parameters()))


def test_blocks_of_timm() -> None:
    net = vit()
    stem, *blocks = blocks_of(net)
    assert "patch_embed.proj.weight" in stem and len(blocks) == len(net.blocks)  # type: ignore[arg-type]
    assert all(any(name.startswith(f"blocks.{number}.") for name in block) for number, block in enumerate(blocks))
    assert "norm.weight" in blocks[-1]
    inside = nn.Sequential()
    inside.add_module("timm", net)
    inside.add_module("after", nn.Linear(4, 4))
    assert "after.weight" in blocks_of(inside)[-1]


@pytest.mark.parametrize(
    ("name", "side"), [("test_vit", 32), pytest.param("vit_tiny_patch16_224", 32, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("tune", ["head", "bias", "norm", "lora", "adaptformer", "partial:1"])
def test_transformers(name: str, side: int, tune: str) -> None:
    plain, net = vit(name, side), tuned_vit(Keys(tune), name=name, side=side)
    x = images(2, side)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    last = f"blocks.{len(net.blocks) - 1}."  # type: ignore[arg-type]
    assert trained == {
        name
        for name, _ in net.named_parameters()
        if {
            "head": False,
            "bias": name.endswith(".bias"),
            "norm": ".norm" in f".{name}",
            "lora": "lora_" in name,
            "adaptformer": ".adapter." in name,
            "partial:1": name.startswith((last, "norm.", "fc_norm.")),
        }[tune]
    }
    if trained:
        randomize_(net)
        net(x).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert (parameter.grad is not None) == (name in trained), name


@pytest.mark.parametrize("targets", ["attention", "mlp", "all"])
def test_targets(targets: str) -> None:
    net = tuned_vit(Keys("lora", LoraConfig(targets=targets)))
    ends = {"attention": {"qkv", "proj"}, "mlp": {"fc1", "fc2"}, "all": {"qkv", "proj", "fc1", "fc2"}}[targets]
    found = [name for name, _ in lora_layers(net)]
    assert {name.rpartition(".")[2] for name in found} == ends
    assert ("patch_embed.proj" in found) == (targets == "all")
    randomize_(net)
    oracle = merge_(copy.deepcopy(net).eval())
    torch.testing.assert_close(net.eval()(images(2, 32)), oracle(images(2, 32)), rtol=1e-4, atol=1e-5)
    assert [type(module) for module in oracle.modules()] == [type(module) for module in vit().modules()]


@pytest.mark.parametrize(
    ("name", "attention", "mlp"),
    [
        (
            "maxvit_tiny_tf_224",
            {"qkv": 22, "proj": 22},
            {"fc1": 22, "fc2": 22},
        ),  # all of them in attn_block or attn_grid
        ("vit_base_patch16_siglip_224", {"qkv": 12, "q": 1, "kv": 1, "proj": 13}, {"fc1": 13, "fc2": 13}),
        ("swinv2_tiny_window8_256", {"qkv": 12, "proj": 12}, {"fc1": 12, "fc2": 12}),
        ("vit_relpos_small_patch16_224", {"qkv": 12, "proj": 12}, {"fc1": 12, "fc2": 12}),
    ],
)
def test_targets_by_the_innermost_name(name: str, attention: dict[str, int], mlp: dict[str, int]) -> None:
    """Neither containers named after attention, nor MLPs that compute position biases, decide what a layer is."""
    timm = pytest.importorskip("timm")
    for targets, expected in (("attention", attention), ("mlp", mlp)):
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=0)
        tune_(net, Keys("lora", LoraConfig(targets=targets)), num_classes=4, seed=0, scope="")
        assert Counter(layer.rpartition(".")[2] for layer, _ in lora_layers(net)) == expected, targets


LAYERS = [
    (nn.Linear(5, 7), (3, 5)),
    (nn.Linear(5, 7, bias=False), (2, 3, 5)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9)),
    (nn.Conv2d(4, 6, (1, 3), dilation=2, padding="same", bias=False), (2, 4, 9, 9)),
    (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 9, 9)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 9)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_low_rank_against_merged_weights(layer: Any, shape: tuple[int, ...]) -> None:
    """The layer, its gradients, and what reads its weight, against W + alpha / rank B A written down here."""
    layer = copy.deepcopy(layer).double()
    x, weight = torch.randn(shape, dtype=torch.float64), layer.weight.detach().clone()
    base = layer(x)
    add_lora_(layer, rank=3, alpha=6.0)
    assert isinstance(layer, LoraLinear | LoraConv2d) and torch.equal(layer(x), base)
    with torch.no_grad():
        layer.lora_down.copy_(torch.randn(layer.lora_down.shape))
        layer.lora_up.copy_(torch.randn(layer.lora_up.shape))
    delta = 2.0 * torch.einsum("or,r...->o...", layer.lora_up, layer.lora_down)
    torch.testing.assert_close(layer.weight, weight + delta)
    assert torch.equal(layer.state_dict()["weight"], weight)
    out = layer(x)
    wanted = torch.func.functional_call(plain_of(layer), {"weight": weight + delta}, (x,))
    torch.testing.assert_close(out, wanted)
    parameters = (layer.lora_down, layer.lora_up)
    for mine, theirs in zip(
        torch.autograd.grad(out.square().sum(), parameters),
        torch.autograd.grad(wanted.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    by_state = merged(layer.state_dict(), layer)
    merge_(layer)
    torch.testing.assert_close(layer(x), wanted)
    assert type(layer) in (nn.Linear, nn.Conv2d) and by_state.keys() == layer.state_dict().keys()
    torch.testing.assert_close(by_state["weight"], layer.weight)


def plain_of(layer: Any) -> nn.Module:
    return merge_(copy.deepcopy(layer))


def test_layers_with_a_forward_of_their_own() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return self._conv_forward(input, 2 * self.weight, self.bias)

    layer: Any = Doubled(3, 5, 1)
    add_lora_(layer, rank=2, alpha=2.0)
    randomize_(layer)
    x = images(1, 4)
    out = layer(x)
    assert isinstance(layer, Doubled)
    torch.testing.assert_close(merge_(layer)(x), out)


def test_adapters() -> None:
    """Beside every MLP, on what the MLP reads, with LIFT's width and scale."""
    net: Any = tuned_vit(Keys("adaptformer"), num_classes=1000)
    depth = len(net.blocks)
    assert auto_bottleneck(1000, 12) == 32 and auto_bottleneck(100, 12) == 4 and auto_bottleneck(10, 12) == 1
    adapter: Adapter = net.blocks[0].mlp.adapter
    assert adapter.down.out_features == auto_bottleneck(1000, depth) and adapter.scale.item() == 1.0
    assert not adapter.up.weight.any() and not adapter.down.bias.any() and adapter.down.weight.std() > 0
    randomize_(net)
    tokens = torch.randn(2, 5, adapter.down.in_features)
    mlp = net.blocks[0].mlp
    expected = mlp.forward(tokens) + adapter.scale * (
        (tokens @ adapter.down.weight.T + adapter.down.bias).relu() @ adapter.up.weight.T + adapter.up.bias
    )
    torch.testing.assert_close(mlp(tokens), expected)
    clone = copy.deepcopy(net).eval()
    with torch.no_grad():
        clone.blocks[0].mlp.adapter.scale.zero_()  # a copy adds its own adapter, not that of the original
    assert not torch.equal(clone(images(2, 32)), net.eval()(images(2, 32)))


def test_adapters_as_configured() -> None:
    net: Any = tuned_vit(Keys("adaptformer", adaptformer=AdaptFormerConfig(bottleneck=3, scale=0.1)))
    assert net.blocks[0].mlp.adapter.down.out_features == 3
    torch.testing.assert_close(net.blocks[0].mlp.adapter.scale, torch.tensor([0.1]))


OWN_NORM = Keys("adaptformer", adaptformer=AdaptFormerConfig(bottleneck=3, norm="own"))


def test_adapters_with_a_norm_of_their_own() -> None:
    """They read the tokens before the block's norm, also in a copy, and after a pass keep none of them."""
    net: Any = tuned_vit(OWN_NORM)
    x, block = images(2, 32), net.blocks[0]
    assert torch.equal(net.eval()(x), vit().eval()(x))
    with torch.no_grad():
        block.norm2.weight.mul_(3)  # or both norms would give the same
    randomize_(net)
    adapter, tokens = block.mlp.adapter, torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2))
    middle = tokens + block.attn(block.norm1(tokens))
    normed = nn.functional.layer_norm(middle, (64,), adapter.norm.weight, adapter.norm.bias)
    update = adapter.scale * (adapter.up(adapter.down(normed).relu()))
    torch.testing.assert_close(block(tokens), middle + block.mlp.forward(block.norm2(middle)) + update)
    for net.grad_checkpointing in (False, True):
        net.zero_grad()
        net.train()(x).square().sum().backward()
        assert all(part.before_norm is None for part in net.modules() if isinstance(part, Adapter))
        assert all((p.grad is not None) == (".adapter." in name) for name, p in net.named_parameters())
    clone = copy.deepcopy(net)
    with torch.no_grad():
        clone.blocks[0].mlp.adapter.norm.weight.zero_()
    assert not torch.equal(clone(x), net(x))


def test_norms_of_adapters_have_two_numbers_for_each_channel() -> None:
    timm = pytest.importorskip("timm")
    trained = []
    for norm in ("block", "own"):
        with torch.device("meta"):
            net = timm.create_model("vit_base_patch16_224", num_classes=0)
        tune_(net, Keys("adaptformer", adaptformer=AdaptFormerConfig(norm=norm)), num_classes=100, seed=0, scope="")
        trained.append(count(net)[0])
    assert trained == [83_004, 83_004 + 12 * 2 * 768]


@pytest.mark.parametrize("name", ["levit_128s", "swinv2_cr_tiny_ns_224"])
def test_a_norm_of_its_own_where_none_stands_before_the_mlp(name: str) -> None:
    """Told of a network without such norms when it is built, and of one whose norms follow the MLP by its first images."""
    timm = pytest.importorskip("timm")
    refused = pytest.raises(ConfigError, match=r"^model\.adaptformer\.norm=own: in this backbone a block has no norm2")
    with refused, torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
        tune_(net, OWN_NORM, num_classes=4, seed=0, scope="")
        net(torch.empty(1, 3, 224, 224))


@pytest.mark.parametrize("norm", ["block", "own"])
def test_adapters_are_exported(tmp_path: Path, norm: str) -> None:
    net = tuned_vit(Keys("adaptformer", adaptformer=AdaptFormerConfig(norm=norm))).eval()
    randomize_(net)
    x = images(2, 32)
    program = torch.export.export(net, (x,))
    torch.export.save(program, tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), net(x))


@pytest.mark.parametrize(
    "tune", ["", "lorra", "partial", "partial:", "partial:0", "partial:-1", "partial:x", "partial:1.5"]
)
def test_refused_words(tune: str) -> None:
    with pytest.raises(
        ValueError, match=r"^tune must be one of full, head, .*partial:\.\.\., got '|^tune='.*expected partial:K"
    ):
        ModelConfig(tune=tune)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune": "partial:4"}, "model.tune=partial:4: this backbone has 3 blocks"),
        ({"tune": "adaptformer"}, "model.tune=adaptformer: this backbone has no block with both attn and mlp, beside"),
        (
            {"tune": "lora", "lora": LoraConfig(targets="attention")},
            "model.lora.targets=attention: this backbone has no",
        ),
        ({"tune": "lora", "lora": LoraConfig(targets="mlp")}, "model.lora.targets=mlp: this backbone has no"),
    ],
)
def test_refused_by_the_backbone(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LongTailNet(ModelConfig(name="resnet8", **fields), 4, frozenset(), 0)


def test_refused_options() -> None:
    for make in (
        lambda: LoraConfig(rank=0),
        lambda: LoraConfig(alpha=0.0),
        lambda: LoraConfig(targets="qkv"),
        lambda: AdaptFormerConfig(bottleneck=0),
        lambda: AdaptFormerConfig(scale=0.0),
        lambda: AdaptFormerConfig(norm="layer"),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()
    with pytest.raises(ConfigError, match=r"Linear says of no part .*model\.tune=partial"):
        blocks_of(nn.Linear(2, 2))


def test_the_stem_of_a_hybrid_is_no_block_of_its_own() -> None:
    """Its network of timm has layers with numbers, too, which are not those of the transformer around it."""
    net = LongTailNet(ModelConfig(name="timm:vit_tiny_r_s16_p8_224", tune="partial:1"), 4, frozenset(), 0)
    trained = {name for name, p in net.backbone.named_parameters() if p.requires_grad}
    assert any(".blocks.11." in name for name in trained)
    assert not [name for name in trained if "patch_embed" in name or ".blocks.10." in name]
