"""Depths against timm's own layer-wise decay, and of this package's networks block by block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ltcore.models.backbones import Backbone, split_last_block
from ltcore.models.depth import attends, depths, outermost, undecayed
from ltcore.models.norm import norm2d
from ltcore.models.registry import MODELS

timm = pytest.importorskip("timm")
DECAY = 0.7
NETS = ["test_vit", "vit_tiny_patch16_224", "convnext_atto", "resnet10t"]


class Wrapped(nn.Module):
    """A network of timm inside of another module, as an adapter would hold it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def timm_scales(net: nn.Module) -> dict[str, float]:
    """The rates of timm's own parameter groups."""
    from timm.optim._param_groups import param_groups_layer_decay

    names = {id(p): name for name, p in net.named_parameters()}
    groups = param_groups_layer_decay(net, layer_decay=DECAY)
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


def scales(backbone: nn.Module) -> dict[str, float]:
    found, above = depths(backbone)
    return {name: DECAY ** (above - depth) for name, depth in found.items()}


def own(name: str, num_experts: int = 1) -> Any:
    return MODELS[name].build(norm2d(None), num_experts, 0.75)


@pytest.mark.parametrize("name", NETS)
def test_without_its_classifier_a_network_of_timm_has_the_rates_that_it_has_with_it(name: str) -> None:
    whole = timm_scales(timm.create_model(name, num_classes=5))
    found = scales(Wrapped(timm.create_model(name, num_classes=0)))
    assert found == pytest.approx({f"net.{k}": v for k, v in whole.items() if f"net.{k}" in found})
    classifier = [v for k, v in whole.items() if f"net.{k}" not in found]
    assert classifier and set(classifier) == {1.0}
    assert min(found.values()) < DECAY**2 and len(set(found.values())) > 4


def test_a_norm_after_the_pooling_learns_like_the_classifier() -> None:
    net = timm.create_model("test_vit", num_classes=0, global_pool="avg")
    found, above = depths(net)
    assert found["fc_norm.weight"] == above > found["blocks.0.norm1.weight"]


def test_a_network_with_its_classifier_keeps_timms_depths() -> None:
    net = timm.create_model("test_vit", num_classes=5)
    assert scales(net) == pytest.approx(timm_scales(net))


def test_of_a_network_that_says_nothing_twelve_tensors_are_a_layer_as_in_timm() -> None:
    from timm.optim._param_groups import auto_group_layers

    trunk = nn.Sequential(*(nn.Linear(2, 2) for _ in range(15)))
    whole = nn.Sequential(trunk, nn.Linear(2, 3))
    whole.pretrained_cfg = {"classifier": "1"}  # type: ignore[assignment]
    expected = auto_group_layers(whole)
    found, above = depths(trunk)
    assert {f"0.{name}": depth for name, depth in found.items()} | {"1.weight": above, "1.bias": above} == expected
    assert above == 3


def test_an_adapter_without_trunk_is_counted_by_tensors() -> None:
    class Adapter(Backbone):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(7)))

    found, above = depths(Adapter())
    assert (found["net.0.weight"], found["net.6.bias"], above) == (0, 1, 2)


def test_own_networks_count_the_stem_and_every_block() -> None:
    found, above = depths(own("resnet20"))
    assert found["trunk.conv1.weight"] == found["trunk.bn1.bias"] == 0
    order = [found[f"{part}.layer{s}.{b}.conv2.weight"] for s, part in _places() for b in range(3)]
    assert order == list(range(1, 10)) and above == 10


def _places() -> list[tuple[int, str]]:
    return [(1, "trunk"), (2, "branches.0"), (3, "branches.0")]


@pytest.mark.parametrize("name", ["resnet8", "resnet50"])
def test_experts_and_branches_lie_side_by_side(name: str) -> None:
    plain, above = depths(own(name))
    experts, above_experts = depths(own(name, num_experts=2))
    halves, above_halves = depths(split_last_block(own(name)))
    assert above == above_experts == above_halves
    assert {k: v for k, v in experts.items() if not k.startswith("branches.1.")} == plain
    for found in (experts, halves):
        first = {k.removeprefix("branches.0."): v for k, v in found.items() if k.startswith("branches.0.")}
        assert first == {k.removeprefix("branches.1."): v for k, v in found.items() if k.startswith("branches.1.")}
    assert max(halves.values()) == above - 1
    stem = {k for k, v in plain.items() if v == 0}
    assert stem == {f"trunk.{k}" for k in ("conv1.weight", "bn1.weight", "bn1.bias")}


def test_what_a_network_exempts_from_weight_decay() -> None:
    assert undecayed(Wrapped(timm.create_model("test_vit", num_classes=0))) == {"net.pos_embed", "net.cls_token"}
    assert undecayed(own("resnet8")) == set()
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net.no_weight_decay = lambda: {"1.*"}  # type: ignore[assignment]
    assert undecayed(net) == {"1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("test_vit", True),
        ("swin_tiny_patch4_window7_224", True),
        ("swiftformer_xs", True),
        ("efficientvit_m0", True),
        ("convnext_atto", False),
    ],
)
def test_attention_is_found_in_networks_of_timm(name: str, has: bool) -> None:
    with torch.device("meta"):
        assert attends(timm.create_model(name)) is has


def test_attention_is_found_in_torchs_own_layer_and_in_no_residual_network() -> None:
    assert attends(nn.TransformerEncoderLayer(8, 2))
    assert not any(attends(own(name)) for name in MODELS if "152" not in name)


def test_modules_within_one_that_was_found_are_not_yielded() -> None:
    inner, outer = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))
    outer.append(inner)
    for module in (inner, outer):
        module.ask = lambda: None  # type: ignore[assignment]
    assert [(prefix, net) for prefix, net in outermost(nn.Sequential(outer), "ask")] == [("0.", outer)]
