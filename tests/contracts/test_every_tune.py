"""What every value of ``model.tune`` must do, under every family of losses: train what it names, and touch nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from ltcore import dist
from ltcore.data.loading.factory import make_loader
from ltcore.errors import ConfigError
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.tune import is_added
from ltcore.objective.registry import BASES
from ltcore.training.build import Components, build, stream_options
from ltcore.training.context import LocalContext
from ltcore.training.optim import build_optimizer
from tests.ddp import run_ranks
from tests.training.runs import TERMS, plain_steps, tiny_run


@dataclass(frozen=True)
class Network:
    """What is known of a network, written down independently of the code."""

    tunes: tuple[str, ...]
    """Those that fit it."""
    last_block: str
    """Part of the names of parameters of its last block, and of what follows that."""
    norm: str
    """Part of the names of parameters of normalization layers; both are regular expressions."""
    keys: dict[str, Any] = field(default_factory=dict)
    """Others that a run with it needs."""


FEW = ("cross_entropy", "balanced_softmax")
SMALL = {"data.image_size": 32}
TUNES = ("full", "head", "bias", "norm", "lora", "partial:1")
NETWORKS = {
    "resnet8": Network(TUNES, r"\.layer3\.0\.", r"\.bn\d\."),
    "timm:test_resnet": Network(TUNES, r"\.layer4\.0\.", r"\.bn\d\.|\.downsample\.2\.|\.conv1\.[14]\."),
    "timm:test_vit": Network(
        (*TUNES, "adaptformer"),
        r"\.blocks\.5\.|\.norm\.",
        r"\.norm\d?\.",
        {
            "data.image_size": 32,
            "model.adaptformer.bottleneck": 8,
        },  # a bottleneck of 1 may be a ReLU that passes nothing
    ),
    "timm:test_convnext": Network(
        TUNES, r"\.stages\.3\.blocks\.1\.|\.head\.norm\.", r"\.norm\.|\.downsample\.0\.|\.stem\.1\.", SMALL
    ),
    "timm:test_nfnet": Network(
        tuple(tune for tune in TUNES if tune != "norm"), r"\.stages\.3\.0\.|\.final_conv\.", r"(?!)", SMALL
    ),
}
"""Networks that take a step in a fraction of a second: with batch norm, with layer norm, and with none."""
RARE = ("timm:test_convnext", "timm:test_nfnet")
"""Networks that meet one base, in the slow run."""
CASES = [
    pytest.param(network, tune, base, marks=[pytest.mark.slow] if network in RARE else [])
    for network, row in NETWORKS.items()
    for tune in row.tunes
    for base in FEW[network in RARE :]
]
COSINE = {"model.head": "cosine", "model.cosine_scale": 30.0}
OF_BASE: dict[str, dict[str, Any]] = {
    "ldam": COSINE,
    "ride": {"model.num_experts": 2, **COSINE},
    "sade": {"model.num_experts": 3},
    "bbn": {"model.bilateral": True},
}
"""Keys that a run with a base needs."""
OBJECTIVES: dict[str, dict[str, Any]] = {"none": {}} | {
    term: {key: value for key, value in TERMS.items() if f".{term}." in key} for term in ("lpa", "dro", "ifl")
}
ALL = {"all": TERMS}


def parts_of(uri: str, network: str, tune: str, base: str, terms: dict[str, Any]) -> tuple[Components, Any, Any]:
    cfg = tiny_run(
        model__name=network,
        model__tune=tune,
        objective__base=base,
        train__ema_decay=0.5,
        **terms,
        **NETWORKS[network].keys,
        **OF_BASE.get(base, {}),
    )
    loader = make_loader(cfg.data, uri, batch_size=cfg.train.batch_size, seed=cfg.seed, **stream_options(cfg))
    return build(cfg, loader, LocalContext(torch.device("cpu"))), loader, build_optimizer


@torch.no_grad()
def wake_(*nets: nn.Module) -> None:
    """Makes parameters small where they are zero, which keeps others from having a gradient in the first steps."""
    for net in nets:
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def expected(network: str, tune: str, name: str) -> bool:
    """Whether a parameter of the network is to be trained, written down independently of the code."""
    if not name.startswith("backbone.") or tune == "full":
        return True
    if tune == "partial:1":
        return re.search(NETWORKS[network].last_block, name) is not None
    if tune == "norm":
        return re.search(NETWORKS[network].norm, name) is not None
    if tune in ("lora", "adaptformer"):
        return is_added(name)
    return tune == "bias" and name.endswith("bias")


@pytest.mark.parametrize("terms", OBJECTIVES)
@pytest.mark.parametrize(("network", "tune", "base"), CASES)
def test_one_step(tiny_shards: str, network: str, tune: str, base: str, terms: str) -> None:
    one_step(tiny_shards, network, tune, base, terms)


def other_cells() -> list[tuple[str, str, str, str]]:
    """Every other base with every way to tune, and in turn with every network that takes both and every term or none."""
    turn, cells = 0, []
    for base in (base for base in BASES if base not in FEW):
        branches = bool({"model.num_experts", "model.bilateral"} & OF_BASE.get(base, {}).keys())
        terms = ["none"] if BASES[base].build.pairs else [*OBJECTIVES, "all"]
        for tune in (*TUNES, "adaptformer"):
            fit = [name for name, row in NETWORKS.items() if tune in row.tunes and (not branches or name == "resnet8")]
            if fit:
                cells.append((fit[turn % len(fit)], tune, base, terms[turn % len(terms)]))
                turn += 1
    return cells


@pytest.mark.slow
@pytest.mark.parametrize(("network", "tune", "base", "terms"), other_cells())
def test_one_step_of_every_other_base(tiny_shards: str, network: str, tune: str, base: str, terms: str) -> None:
    one_step(tiny_shards, network, tune, base, terms)


def test_what_cannot_branch_refuses_bases_that_need_it() -> None:
    for base, keys in OF_BASE.items():
        if {"model.num_experts", "model.bilateral"} & keys.keys():
            with pytest.raises(ConfigError, match="timm:test_convnext"):
                cfg = tiny_run(model__name="timm:test_convnext", objective__base=base, **keys)
                LongTailNet(cfg.model, 4, frozenset(), 0)


def test_a_network_without_norm_has_none_to_train() -> None:
    with pytest.raises(ConfigError, match=r"model\.tune=norm finds nothing to train"):
        LongTailNet(ModelConfig(name="timm:test_nfnet", tune="norm"), 4, frozenset(), 0)


def one_step(tiny_shards: str, network: str, tune: str, base: str, terms: str) -> None:
    """The named parameters change, all others and the statistics of frozen layers stay what they are, bit for bit."""
    parts, loader, make_optimizer = parts_of(tiny_shards, network, tune, base, (OBJECTIVES | ALL)[terms])
    step, net, average = parts.step, parts.step.net, parts.average
    copies = [copy.net for copy in (average, step.key) if copy is not None]
    wake_(net, *copies)
    optimizer = make_optimizer(tiny_run(train__optim__weight_decay=0.1).train.optim, step)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        name for name, _ in net.named_parameters() if expected(network, tune, name)
    }
    for raw in list(loader.train_batches(0))[:2]:
        batch = parts.augment(raw, 0)
        if step.key is not None:
            step.key.update(net)
        optimizer.zero_grad()
        loss, _, out = step(batch, 0.9)
        loss.backward()
        optimizer.step()
        step.objective.observe(out, batch, 0.9)
        step.objective.merge(0.9)
        assert average is not None
        average.update(net)
    loader.close()
    for name, value in net.state_dict().items():
        if name in net.frozen:
            assert torch.equal(value, before[name]), name
            assert all(torch.equal(copy.state_dict()[name], value) for copy in copies), name
    for name, parameter in net.named_parameters():
        changed = not torch.equal(parameter, before[name])
        # a bias before a batch norm has no effect on the loss: its gradient is rounding noise or zero
        if name != "projection.layers.linear0.bias":
            assert changed == expected(network, tune, name), name
        assert (name in net.frozen) != expected(network, tune, name), name


@pytest.mark.parametrize("tune", ["head", "norm", "lora", "partial:1"])
def test_two_ranks(tiny_shards: str, tune: str) -> None:
    """They train the same network as one process, with unused parameters and all three terms."""
    cfg = tiny_run(model__tune=tune, model__ghost_batch=4, objective__base="balanced_softmax", **TERMS)
    alone = plain_steps(cfg.to_dict(), tiny_shards, 4)
    frozen = LongTailNet(cfg.model, 4, frozenset(), 0).frozen
    for rank in run_ranks(plain_steps, 2, cfg.to_dict(), tiny_shards, 4):
        for name, value in rank["state"].items():
            torch.testing.assert_close(value, alone["state"][name], rtol=1e-9, atol=1e-11, msg=name)
        assert all(torch.equal(rank["state"][f"net.{name}"], alone["state"][f"net.{name}"]) for name in frozen)
    assert dist.world() == 1
