"""What networks of timm must do as backbones: one small network of each kind, with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ltcore.batch import Batch
from ltcore.contracts import models
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import ConfigError
from ltcore.models.ema import EmaCopy
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.norm import GhostBatchNorm2d
from ltcore.models.registry import stages
from ltcore.models.timm_backbone import TimmBackbone, chosen_stages, has_map
from ltcore.objective.objective import Objective
from ltcore.stats import ClassStats
from ltcore.training.build import build_modules
from ltcore.training.preflight import check_run
from ltcore.training.step import TrainStep
from tests.contracts.networks import NEEDS, STAGES
from tests.training.runs import TERMS, tiny_run

timm = pytest.importorskip("timm")

KINDS = {
    "test_resnet": (True, 96),
    "test_efficientnet": (True, 256),
    "mobilenetv3_small_050": (True, 288),  # its head widens the pooled map
    "test_vit": (False, 64),
    "vit_tiny_patch16_224": (False, 192),
    "convnext_atto": (False, 320),
    "test_nfnet": (False, 192),  # no norm
    **{name: (True, dim) for name, dim in (("resnet10t", 512), ("tf_efficientnet_lite0", 1280))},
}
"""Network -> whether it has batch norms, and channels of its map."""


def build(name: str, needs: frozenset[str] = NEEDS, seed: int = 0, **fields: object) -> LongTailNet:
    return LongTailNet(ModelConfig(name=f"timm:{name}", **fields), 12, needs, seed)  # type: ignore[arg-type]


def images(count: int = 4, px: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(0))


def timms(net: LongTailNet) -> nn.Module:
    assert isinstance(net.backbone, TimmBackbone)
    return net.backbone.net


@pytest.mark.parametrize("name", KINDS)
def test_a_step(name: str) -> None:
    """Sizes as told, a gradient for every parameter, and logits in float32 beside half types."""
    net = build(name, **({"ghost_batch": 2} if KINDS[name][0] else {}))
    assert any(isinstance(module, GhostBatchNorm2d) for module in net.backbone.modules()) == KINDS[name][0]
    out = net(images())
    assert out.logits_BC.shape == (4, 12) and out.features_BD.shape == (4, net.feature_dim)
    assert out.fmap_BDhw is not None and out.query_Bd is not None
    assert out.fmap_BDhw.shape[:2] == (4, net.fmap_dim) == (4, KINDS[name][1]) and out.fmap_BDhw.shape[2] >= 2
    weights = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    ((out.logits_BC * weights).sum() + out.query_Bd[:, 0].sum()).backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(images())
    assert half.logits_BC.dtype == half.features_BD.dtype == torch.float32 and half.logits_BC.isfinite().all()


@pytest.mark.parametrize("name", ["test_vit", "mobilenetv3_small_050", "test_resnet"])
@pytest.mark.parametrize("contract", models.CONTRACTS, ids=lambda contract: contract.__name__)
def test_the_contracts_of_networks_hold_for_those_of_timm(name: str, contract: Callable[[str], None]) -> None:
    """One that reads a class token, one whose head widens the pooled map, and one with residual branches that begin at zero."""
    contract(f"timm:{name}")


@pytest.mark.parametrize("name", KINDS)
def test_features_are_what_timms_own_classifier_sees(name: str) -> None:
    net = build(name).eval()
    own = copy.deepcopy(timms(net))
    with torch.no_grad():
        out, again = net(images()), net(images())
        seen = own.forward_head(own.forward_features(images()), pre_logits=True)  # type: ignore[operator]
        exclusive = net(images()[:1])
    assert torch.equal(out.features_BD, seen)
    assert torch.equal(out.features_BD, again.features_BD)
    torch.testing.assert_close(out.features_BD[:1], exclusive.features_BD, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_stages(name: str) -> None:
    """Their names are known without building the network; asking for them changes no other output."""
    net = build(name).eval()
    assert tuple(net.stage_dims) == stages(f"timm:{name}", None) == ("stage1", "stage2", "stage3")
    with torch.no_grad():
        plain = net(images())
        net.needs = NEEDS | STAGES | {f"fmap/{stage}" for stage in STAGES}
        out = net(images())
    assert torch.equal(out.logits_BC, plain.logits_BC) and torch.equal(out.fmap_BDhw, plain.fmap_BDhw)  # type: ignore[arg-type]
    assert out.stage_features_BD is not None and out.stage_fmaps_BDhw is not None
    for stage, fmap_BDhw in out.stage_fmaps_BDhw.items():
        assert fmap_BDhw.shape[:2] == out.stage_features_BD[stage].shape == (4, net.stage_dims[stage])


def test_which_intermediate_features_are_stages() -> None:
    assert chosen_stages([(8, 4), (16, 8), (32, 16), (64, 32)]) == (0, 1, 2)
    assert chosen_stages([(64, 2), (8, 4), (16, 8), (32, 16), (64, 32)]) == (1, 2, 3), "without the stem"
    assert chosen_stages([(192, 16)] * 12) == (2, 5, 8)
    assert chosen_stages([(16, 8), (32, 16)]) == (0,)
    assert chosen_stages([(32, 16)]) == () == chosen_stages([])


def test_the_map_is_what_is_pooled() -> None:
    for name in ("test_resnet", "test_efficientnet"):
        out = build(name).eval()(images())
        torch.testing.assert_close(out.fmap_BDhw.mean((2, 3)), out.features_BD, rtol=1e-4, atol=1e-5)
    net = build("vit_tiny_patch16_224").eval()
    with torch.no_grad():
        tokens = timms(net).forward_features(images())  # type: ignore[operator]
        assert torch.equal(net(images()).fmap_BDhw.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_values_depend_on_seed_and_scope_alone() -> None:
    first, again, other = build("test_vit"), build("test_vit", frozenset()), build("test_vit", seed=1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    twin = LongTailNet(ModelConfig(name="timm:test_vit"), 12, frozenset(), 0, scope="twin.")
    assert torch.equal(before, torch.get_rng_state())
    for name, value in again.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), f"{name} depends on the projection"
    name = "backbone.net.blocks.0.attn.qkv.weight"
    values = [net.state_dict()[name] for net in (first, other, twin)]
    assert not any(torch.equal(a, b) for a, b in ((values[0], values[1]), (values[0], values[2])))


def test_nothing_is_random_in_training() -> None:
    """Swin comes with stochastic depth."""
    net = build("swin_tiny_patch4_window7_224", frozenset()).train()
    assert torch.equal(net(images(2)).features_BD, net(images(2)).features_BD)


def test_ghost_batch_norms_act_as_those_they_replace() -> None:
    """One group is the whole batch; in evaluation they are the same anyway."""
    for name in ("test_resnet", "test_efficientnet"):
        plain, ghost = build(name), build(name, ghost_batch=4)
        assert plain.state_dict().keys() == ghost.state_dict().keys()
        for net in (plain, ghost):
            net(images())
            net.eval()
        torch.testing.assert_close(plain(images()).features_BD, ghost(images()).features_BD)
    with pytest.raises(ConfigError, match=r"model.ghost_batch=2 cannot act on the BatchNorm1d of timm:levit_128s"):
        build("levit_128s", ghost_batch=2)


def modules(name: str, **changes: object) -> tuple[LongTailNet, Objective]:
    stats = ClassStats(torch.tensor([4, 3, 2, 1]), ("many",) * 4)
    return build_modules(tiny_run(model__name=f"timm:{name}", train__epochs=1, **changes), 4, stats, 10)


def test_a_ghost_batch_without_effect_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model.ghost_batch=2 has no effect on timm:test_vit, which has no batch norm"
    ):
        modules("test_vit", model__ghost_batch=2)
    modules("test_vit", model__ghost_batch=2, **TERMS)  # the projection has some


@pytest.mark.parametrize("layers", ["final", "stage2,final"])
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit", "convnext_atto"])
def test_the_terms_compose(name: str, layers: str) -> None:
    """LPA on its maps, DRO on its features and IFL on its logits, in a step with a key encoder."""
    net, objective = modules(name, **TERMS, objective__terms__lpa__layers=layers)
    step = TrainStep(net, objective, EmaCopy(net, 0.5), None)
    index_B = torch.arange(4)
    batch = Batch(torch.stack([images(), images().flip(-1)]), index_B, index_B, torch.zeros_like(index_B))
    loss, parts, out = step(batch, 0.99)
    objective.observe(out, batch, 0.99)
    objective.merge(0.99)
    loss, parts, _ = step(batch, 0.99)
    loss.backward()
    assert {"lpa", "dro", "ifl"} <= {part.split("/")[0] for part in parts}, parts.keys()
    assert loss.isfinite() and all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("pit_ti_224", True),
        ("volo_d1_224", True),
        ("coat_tiny", True),
        ("coat_lite_tiny", True),
        ("crossvit_tiny_240", False),
        ("efficientvim_m1", False),
        ("gemma4_vit_167m", True),  # it asks for numbers on its way
    ],
)
def test_whether_a_network_has_a_map_is_known_without_a_number_of_it(name: str, has: bool) -> None:
    assert has_map(f"timm:{name}", None) is has


@pytest.mark.parametrize("name", ["pit_ti_224", "coat_lite_tiny"])
def test_patches_beside_a_class_token_are_a_map(name: str) -> None:
    """CoaT keeps its class token among the patches, PiT hands it alone to its head."""
    net = build(name, frozenset({"fmap"})).eval()
    with torch.no_grad():
        fmap_BDhw = net(images(1, 224)).fmap_BDhw
        tokens = timms(net).forward_features(images(1, 224))  # type: ignore[operator]
    assert fmap_BDhw is not None and fmap_BDhw.shape == (1, net.fmap_dim, 7, 7) and fmap_BDhw.std() > 0
    if name == "coat_lite_tiny":
        assert torch.equal(fmap_BDhw.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_a_network_without_a_map_is_refused_where_one_is_needed(tiny_shards: str) -> None:
    """By the command already, and with LPA alone, which reads it."""
    net = build("crossvit_tiny_240", frozenset()).eval()
    with torch.no_grad():
        assert net(images(1, 240)).features_BD.shape == (1, 288)
        net.needs = frozenset({"fmap"})
        with pytest.raises(ConfigError, match=r"model.name=timm:crossvit_tiny_240 has no feature map"):
            net(images(1, 240))
    without = {"model__name": "timm:crossvit_tiny_240", **{k: v for k, v in TERMS.items() if ".lpa." not in k}}
    manifest = read_manifest(tiny_shards)
    check_run(tiny_run(**without), manifest)
    with pytest.raises(
        ConfigError, match=r"^model.name=timm:crossvit_tiny_240 has no feature map, .* Switch that term off"
    ):
        check_run(tiny_run(**without).replace({"objective.terms.lpa": "on"}), manifest)


def test_sizes_that_the_network_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"timm:test_vit takes no images of 40x40 px \(.*divisible by patch size"):
        build("test_vit", frozenset())(images(1, 40))


def test_what_is_no_network_of_timm_is_refused() -> None:
    def refusal(**fields: object) -> str:
        with pytest.raises(ValueError) as found:
            ModelConfig(**fields)  # type: ignore[arg-type]
        return str(found.value)

    assert refusal(name="timm:resnet10") == (
        "name=timm:resnet10 is no network of the installed timm. Did you mean timm:resnet10t, timm:resnet101, "
        "timm:resnet101s?"
    )
    assert "num_experts=3 does not go with name=timm:test_vit, as networks of timm" in refusal(
        name="timm:test_vit", num_experts=3
    )
    assert refusal(name="timm:test_vit", bilateral=True).startswith(
        "bilateral=true does not go with name=timm:test_vit"
    )
    assert "name=timm:test_vit.r16: timm has no such weights of test_vit. Did you mean r160_in1k? Known: r160_in1k" in (
        refusal(name="timm:test_vit.r16")
    )
    assert "weights=r16: timm has no such weights" in refusal(name="timm:test_vit", weights="r16")
    assert "name the weights once" in refusal(name="timm:test_vit.r160_in1k", weights="other_in1k")
    assert refusal(name="resnet8000").startswith("name must be one of resnet152")


def test_nothing_is_dropped_by_chance() -> None:
    """Some networks call a function for it, whose rate is no module's."""
    from ltcore.models.timm_backbone import create

    net = create("timm:ghostnet_100", None).train()
    features = torch.randn(2, net.num_features, 2, 2)
    assert torch.equal(net.forward_head(features, pre_logits=True), net.forward_head(features, pre_logits=True))
