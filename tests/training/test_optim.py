"""Schedules against the published recipe, and parameter groups."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from ltcore.config.optim import OptimConfig
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.training.optim import build_optimizer, clip_norm, lr_factor, set_lr, step_rate


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


def named_rates(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, float]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def small_net() -> LongTailNet:
    return LongTailNet(ModelConfig(name="resnet8"), 4, frozenset({"query"}), seed=0)


class Fine(nn.Module):
    """A network of timm with a classifier, put together like ``LongTailNet``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = pytest.importorskip("timm")
        self.backbone = timm.create_model(name, num_classes=0)
        self.heads = nn.ModuleList([nn.Linear(self.backbone.num_features, 5)])


def test_by_default_all_parameters_are_one_group_in_their_order() -> None:
    net = small_net()
    (group,) = build_optimizer(OptimConfig(), net).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    assert (group["lr"], group["lr_scale"], group["weight_decay"]) == (0.1, 1.0, 2e-4)


def test_the_backbone_learns_at_its_own_rate_and_all_else_at_lr() -> None:
    net = nn.ModuleDict({"net": small_net(), "twin": small_net(), "objective": nn.Linear(2, 2)})
    optimizer = build_optimizer(OptimConfig(lr=0.5, backbone_lr_factor=0.1), net)
    for lr in (0.5, 0.2):
        set_lr(optimizer, lr)
        rates = named_rates(optimizer, net)
        assert rates.keys() == dict(net.named_parameters()).keys() and len(optimizer.param_groups) == 2
        for name, rate in rates.items():
            assert rate == pytest.approx(lr * (0.1 if ".backbone." in name else 1)), name


def test_the_rate_falls_block_by_block_towards_the_images() -> None:
    net = small_net()
    rates = named_rates(build_optimizer(OptimConfig(lr=1.0, layer_decay=0.5, backbone_lr_factor=0.8), net), net)
    expected = {"heads.": 1, "projection.": 1, "backbone.branches.0.layer3.": 0.4, "backbone.branches.0.layer2.": 0.2}
    expected |= {"backbone.trunk.layer1.": 0.1, "backbone.trunk.conv1.": 0.05, "backbone.trunk.bn1.": 0.05}
    for name, rate in rates.items():
        (found,) = [value for prefix, value in expected.items() if name.startswith(prefix)]
        assert rate == pytest.approx(found), name


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224", "convnext_atto", "resnet10t"])
def test_rates_and_decay_are_those_of_timm(name: str) -> None:
    from timm.optim._param_groups import param_groups_layer_decay

    fine, whole = Fine(name), pytest.importorskip("timm").create_model(name, num_classes=5)
    cfg = OptimConfig(lr=1.0, layer_decay=0.75, weight_decay=0.05, decay_norm_and_bias=False)
    names = {id(p): name for name, p in fine.named_parameters()}
    found = {
        names[id(p)].removeprefix("backbone."): (group["lr"], group["weight_decay"])
        for group in build_optimizer(cfg, fine).param_groups
        for p in group["params"]
    }
    theirs = {id(p): name for name, p in whole.named_parameters()}
    exempt = getattr(whole, "no_weight_decay", set)()
    for group in param_groups_layer_decay(whole, 0.05, exempt, layer_decay=0.75):
        for p in group["params"]:
            if theirs[id(p)] in found:
                assert found[theirs[id(p)]] == pytest.approx((group["lr_scale"], group["weight_decay"])), theirs[id(p)]
    assert found["heads.0.weight"] == (1.0, 0.05) and found["heads.0.bias"] == (1.0, 0.0)


def test_position_embeddings_are_decayed_where_everything_is() -> None:
    fine = Fine("test_vit")
    bare = [g for g in build_optimizer(OptimConfig(), fine).param_groups if g["weight_decay"] == 0]
    assert bare == []
    optimizer = build_optimizer(OptimConfig(decay_norm_and_bias=False), fine)
    _, group = optimizer.param_groups
    assert any(p is fine.backbone.pos_embed for p in group["params"])
    assert any(p is fine.backbone.cls_token for p in group["params"]) and group["weight_decay"] == 0


def test_groups_do_not_depend_on_values_that_a_search_changes_while_training() -> None:
    net = small_net()
    sizes = [
        [len(g["params"]) for g in build_optimizer(OptimConfig(weight_decay=decay, lr=lr, **own), net).param_groups]
        for decay, lr in ((0.0, 0.1), (0.1, 0.3))
        for own in ({"decay_norm_and_bias": False, "layer_decay": 0.5},)
    ]
    assert sizes[0] == sizes[1] and sum(sizes[0]) == len(list(net.parameters()))


def test_frozen_parameters_are_in_no_group() -> None:
    net = small_net()
    net.heads.requires_grad_(False)
    rates = named_rates(build_optimizer(OptimConfig(layer_decay=0.5), net), net)
    assert rates.keys() == {name for name, p in net.named_parameters() if p.requires_grad}


def test_the_gradient_of_networks_with_attention_alone_is_clipped_by_itself() -> None:
    plain, vit = small_net(), Fine("test_vit")
    assert clip_norm(OptimConfig(), plain) is None and clip_norm(OptimConfig(), vit) == 1.0
    assert clip_norm(OptimConfig(clip_norm=None), vit) is None
    assert clip_norm(OptimConfig(clip_norm=2.5), plain) == clip_norm(OptimConfig(clip_norm=2.5), vit) == 2.5


EPOCHS, STEPS = 10, 7


def by_step(cfg: OptimConfig) -> list[float]:
    return [step_rate(cfg, EPOCHS, STEPS, e, s) for e in range(EPOCHS) for s in range(STEPS)]


def test_the_cosine_by_steps_is_its_formula() -> None:
    rates = by_step(OptimConfig(lr=2.0, schedule="cosine", warmup=0.1, schedule_per_step=True))
    n, k = EPOCHS * STEPS, 7
    assert rates[:k] == pytest.approx([2 * (s + 1) / k for s in range(k)])
    assert rates[k:] == pytest.approx([1 + math.cos(math.pi * s / n) for s in range(k, n)])


@pytest.mark.parametrize("schedule", ["multistep", "cosine", "cosine_after_warmup", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.025, 0.3])
def test_by_steps_each_step_is_what_an_epoch_of_one_step_would_be(schedule: str, warmup: float) -> None:
    cfg = OptimConfig(schedule=schedule, warmup=warmup, schedule_per_step=True, milestones=(0.5, 0.75))
    n = EPOCHS * STEPS
    assert by_step(cfg) == [cfg.lr * lr_factor(cfg, s, n) for s in range(n)]


def test_by_epochs_the_rate_stays_as_it_was() -> None:
    cfg = OptimConfig(warmup=0.1)
    assert by_step(cfg) == [
        cfg.lr * lr_factor(cfg, e, EPOCHS, (s + 1) / STEPS) for e in range(EPOCHS) for s in range(STEPS)
    ]
    assert len(set(by_step(OptimConfig(schedule="cosine", warmup=0.3)))) <= EPOCHS


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"layer_decay": 0.0}, r"layer_decay must be .*\(0, 1\], got 0"),
        ({"layer_decay": 1.5}, "layer_decay must be"),
        ({"backbone_lr_factor": 0.0}, "backbone_lr_factor must be"),
        ({"clip_norm": "often"}, "clip_norm must be auto, null or a number above 0, got 'often'"),
        ({"clip_norm": 0.0}, "clip_norm must be"),
    ],
)
def test_values_that_mean_nothing_are_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OptimConfig(**keys)  # type: ignore[arg-type]


def test_a_network_in_a_backbone_has_the_rates_of_its_place() -> None:
    timm = pytest.importorskip("timm")
    net = torch.nn.Module()
    net.backbone = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0)
    groups = build_optimizer(OptimConfig(lr=1.0, layer_decay=0.5), net).param_groups
    of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    stem = {of[id(p)] for name, p in net.named_parameters() if "patch_embed" in name}
    last = {of[id(p)] for name, p in net.named_parameters() if ".blocks.11." in name}
    assert max(stem) < 0.5**11 < min(last)
