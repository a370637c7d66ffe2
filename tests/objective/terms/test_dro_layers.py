"""DRO-LT at several layers: every layer on its own features and centroids, averaged; the gradient reaches the stages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.config.schema import RunConfig
from ltcore.errors import ConfigError
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.objective.dims import FeatureDims
from ltcore.objective.objective import Objective, ObjectiveConfig, make_objective
from ltcore.objective.registry import Terms
from ltcore.objective.terms.dro import Dro
from ltcore.objective.terms.ifl.term import Ifl
from tests.objective import toy

LABELS = torch.tensor([3, 0, 3, 1, 0, 3, 2, 1])
STATS = toy.make_stats([8, 4, 2, 1])
SIZES = {"final": 5, "stage1": 3, "stage2": 4}


def feature(layer: str, seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed + 10 * list(SIZES).index(layer))
    return torch.randn(len(LABELS), SIZES[layer], generator=gen, dtype=torch.float64, requires_grad=True)


def output(seed: int) -> ModelOutput:
    stages = {layer: feature(layer, seed) for layer in ("stage1", "stage2")}
    return ModelOutput(torch.zeros(len(LABELS), 4), feature("final", seed), stage_features_BD=stages)


def objective(dims: FeatureDims, **options: object) -> Objective:
    """DRO alone over cross-entropy, with the centroids of one epoch."""
    cfg = ObjectiveConfig(base="cross_entropy", terms=Terms(dro=Dro.Config(start=0.0, **options)))  # type: ignore[arg-type]
    return Objective(cfg, STATS, dims, seed=0)


DIMS = FeatureDims(SIZES["final"], 4, STATS.num_samples, {k: v for k, v in SIZES.items() if k != "final"})


def trained(**options: object) -> Objective:
    made = objective(DIMS, **options)
    made.observe(output(0), toy.make_batch(LABELS), 0.1)
    made.merge(0.2)
    return made


def alone(layer: str, **options: object) -> Tensor:
    """The loss of a network whose final features are those of the layer."""
    made = objective(FeatureDims(SIZES[layer], 4, STATS.num_samples), **options)
    made.observe(ModelOutput(torch.zeros(8, 4), feature(layer, 0)), toy.make_batch(LABELS), 0.1)
    made.merge(0.2)
    return made(ModelOutput(torch.zeros(8, 4), feature(layer, 1)), toy.make_batch(LABELS), 0.5).parts["dro"]


@pytest.mark.parametrize("mode", ["sqrt_n", "se", "shared", "learned_compat"])
@pytest.mark.parametrize("layers", [("stage2",), ("final", "stage2"), ("stage1", "final", "stage2")])
def test_the_penalty_is_the_mean_of_what_each_layer_has_alone(layers: tuple[str, ...], mode: str) -> None:
    ours = trained(layers=layers, radius_mode=mode)(output(1), toy.make_batch(LABELS), 0.5).parts["dro"]
    expected = torch.stack([alone(layer, radius_mode=mode) for layer in layers]).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_each_layer_learns_radii_of_its_own() -> None:
    made, layers = trained(layers=("final", "stage2"), radius_mode="learned_compat"), ("final", "stage2")
    radii = made.terms["dro"].learned_eps_C
    assert [tuple(radii_C.shape) for radii_C in radii] == [STATS.counts_C.shape] * 2, "vectors have no weight decay"
    radii[1].data.fill_(0.25)
    made_of = made(output(1), toy.make_batch(LABELS), 0.5)
    expected = [
        alone(layer, radius_mode="learned_compat", radius=r) for layer, r in zip(layers, (1.0, 0.25), strict=True)
    ]
    torch.testing.assert_close(made_of.parts["dro"], torch.stack(expected).mean(), rtol=1e-12, atol=1e-12)
    made_of.loss.backward()
    assert all(radii_C.grad.all() for radii_C in radii), "every class of the batch moves its radius at both layers"
    assert not torch.equal(radii[0].grad, radii[1].grad)


def test_final_alone_is_the_default_bit_for_bit() -> None:
    results = []
    for options in ({}, {"layers": ("final",)}):
        out, made = output(1), trained(**options)
        loss = made(out, toy.make_batch(LABELS), 0.5).loss
        results.append((loss, torch.autograd.grad(loss, out.features_BD)[0]))
        assert made.needs == frozenset()
        assert list(made.memories()) == ["ClassCentroids"]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_final_centroids_are_shared_with_other_losses_and_those_of_stages_are_not() -> None:
    cfg = ObjectiveConfig(terms=Terms(dro=Dro.Config(layers=("stage1", "final")), ifl=Ifl.Config()))
    made = Objective(cfg, STATS, DIMS, seed=0)
    assert list(made.memories()) == ["ClassCentroids", "ClassCentroids1", "ScoreTable"]
    assert made._named["ifl"]["centroids"] is made._named["dro"]["centroids"]
    assert made._named["dro"]["stage1_centroids"] is made.memories()["ClassCentroids"]


@pytest.mark.parametrize("num_experts", [1, 2])
@pytest.mark.parametrize(
    ("layer", "reached", "out_of_reach"),
    [
        ("stage1", "backbone.trunk.layer1", "backbone.branches.0.layer2"),
        ("stage2", "backbone.branches.0.layer2", "backbone.branches.0.layer3"),
    ],
)
def test_the_gradient_reaches_the_stage_and_nothing_behind_it(
    layer: str, reached: str, out_of_reach: str, num_experts: int
) -> None:
    net = LongTailNet(ModelConfig(name="resnet8", num_experts=num_experts), 4, frozenset({layer}), seed=0)
    dims = FeatureDims(net.feature_dim, 4, STATS.num_samples, net.stage_dims)
    made, images = objective(dims, layers=(layer,)), torch.randn(8, 3, 16, 16, generator=torch.Generator())
    made.observe(net(images), toy.make_batch(LABELS), 0.1)
    made.merge(0.2)
    term = made.terms["dro"]
    term(net(images), toy.make_batch(LABELS), toy.make_context(STATS, **made._named["dro"])).backward()
    touched = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert "backbone.trunk.conv1.weight" in touched
    assert any(name.startswith(reached) for name in touched)
    assert not any(name.startswith((out_of_reach, "heads")) for name in touched)


def test_a_loop_of_ones_own_names_the_sizes_of_the_stages() -> None:
    dro = {"dro": {"start": 0.0, "layers": ("final", "stage1")}}
    made = make_objective("cross_entropy", dro, class_counts=[8, 4, 2, 1], features=5, stages={"stage1": 3})
    made.observe(output(0), toy.make_batch(LABELS), 0.1)
    made.merge(0.2)
    assert made(output(1), toy.make_batch(LABELS), 0.5).parts["dro"] > 0
    with pytest.raises(ConfigError, match=r"layers='stage1' is unknown"):
        make_objective("cross_entropy", dro, class_counts=[8, 4, 2, 1], features=5)


# ---- configuration


def test_it_is_a_list_on_the_command_line_and_null_by_default() -> None:
    plain = RunConfig(name="plain").replace({"objective.terms.dro": "on"})
    assert plain.to_flat()["objective.terms.dro.layers"] is None, "a run of an older version, without the key, goes on"
    several = plain.replace({"objective.terms.dro.layers": "final,stage2"})
    assert several.objective.terms.dro.layers == ("final", "stage2")
    for run in (plain, several):
        assert RunConfig.from_flat(run.to_flat()) == run
    assert several.replace({"objective.terms.dro.layers": "null"}) == plain
    assert RunConfig.from_dict({"name": "plain", "objective": {"terms": {"dro": {"layers": None}}}}) == plain


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"objective.terms.dro.layers": "final,stage3"},
            r"objective.terms.dro.layers=final,stage3 does not go with model.name=resnet32, which has no layer 'stage3'. "
            r"Choose among final, stage1, stage2",
        ),
        ({"objective.terms.dro.layers": "final,final"}, r"layers must be one or more different names"),
        ({"objective.terms.dro.layers": ""}, r"layers must be one or more different names, got \[\]"),
        ({"objective.terms.dro.layers": 3}, r"objective.terms.dro.layers=3: expected words such as a,b or null"),
    ],
)
def test_what_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(name="plain").replace(keys)
    assert RunConfig(name="plain").replace({"model.name": "resnet50", "objective.terms.dro.layers": "stage3"})
