"""IFL over every base, also those with several experts: the loss and its gradient are those of the equation."""

from __future__ import annotations

import pytest
import torch

from ltcore.contracts import harness
from ltcore.objective.class_weights import EffectiveWeights, effective_weights
from ltcore.objective.interface import LossContext
from ltcore.objective.losses.class_balanced import ClassBalanced
from ltcore.objective.memory.centroids import ClassCentroids
from ltcore.objective.objective import Objective, ObjectiveConfig
from ltcore.objective.registry import BASES, BaseOptions, Terms
from ltcore.objective.terms.ifl.scores import ScoreTable

INDEX, CENTER_WEIGHT = harness.ragged(), 0.7


def trained(base: str, **options: object) -> Objective:
    ifl = harness.term_config("ifl", num_envs=3, center_weight=CENTER_WEIGHT, milestones=(), **options)
    return harness.fill(harness.build(base, ifl=ifl))


def parts_of(objective: Objective) -> tuple[ScoreTable, ClassCentroids]:
    table, centroids = (objective._named["ifl"][name] for name in ("scores", "centroids"))
    assert isinstance(table, ScoreTable) and isinstance(centroids, ClassCentroids)
    return table, centroids


@pytest.mark.parametrize("base", BASES)
def test_the_loss_is_the_weighted_mean_of_base_and_pull_under_the_prior_of_the_weights(base: str) -> None:
    objective = trained(base)
    out, batch = harness.output_of(objective, INDEX, 7), harness.batch_of(INDEX)
    ours = harness.evaluate(objective, out, batch)

    table, centroids = parts_of(objective)
    weight_B = table.weights(batch).mean(0)
    everything = harness.batch_of(torch.arange(harness.SAMPLES))
    class_C = torch.zeros(harness.CLASSES).index_add_(0, everything.labels_B, table.weights(everything).mean(0))
    ctx = LossContext(
        objective.stats,
        (class_C.double() / harness.SAMPLES).log(),
        harness.PROGRESS,
        objective._named["base"],
    )
    base_B = objective.base(out, batch.labels_B, ctx)
    pull_B = (out.features_BD - centroids.mean_CD[batch.labels_B]).square().mean(1)
    loss = (weight_B * (base_B + CENTER_WEIGHT * pull_B)).mean()
    harness.assert_close(ours.loss, loss.detach(), 1e-6)  # weights are float32
    tensors = {name: t for name, t in harness.tensors(out).items() if t.requires_grad}
    for (name, _), grad in zip(
        tensors.items(), torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True), strict=True
    ):
        harness.assert_close(ours.grads[name], grad, 1e-6)
    assert weight_B.std() > 0.1


@pytest.mark.parametrize("base", ["ride", "sade"])
def test_every_expert_and_its_features_learn_and_scores_are_those_of_the_ensemble(base: str) -> None:
    objective = trained(base)
    ours = harness.run(objective, INDEX)
    assert ours.grads["logits_BC"].shape == (len(INDEX), harness.EXPERTS, harness.CLASSES)
    assert (ours.grads["logits_BC"].abs().sum((0, 2)) > 0).all()
    assert (ours.grads["features_BD"].abs().sum(0) > 0).all()
    table, _ = parts_of(objective)
    table.observe(harness.output_of(objective, INDEX, 7), harness.batch_of(INDEX))
    mean_BC = harness.output_of(objective, INDEX, 7).logits_BC.mean(1).softmax(1)
    expected_B = mean_BC[torch.arange(len(INDEX)), harness.batch_of(INDEX).labels_B]
    harness.assert_close(table.pending()["score_N"][INDEX], expected_B.detach())


@pytest.mark.parametrize("base", ["class_balanced", "ldam", "ride"])
def test_class_weights_give_every_class_the_part_that_it_has_without_environments(base: str) -> None:
    objective = trained(base)
    everything = harness.batch_of(torch.arange(harness.SAMPLES))
    table, _ = parts_of(objective)
    log_share_C = objective.stream_shares_C(harness.PROGRESS).log()
    class_weights = objective.base.class_weights
    assert isinstance(class_weights, EffectiveWeights)
    weight_N = table.weights(everything).mean(0).double() * class_weights(log_share_C)[everything.labels_B]
    part_C = torch.zeros(harness.CLASSES, dtype=torch.float64).index_add_(0, everything.labels_B, weight_N)
    expected_C = effective_weights(objective.stats.counts_C, 0.9999) * objective.stats.counts_C
    harness.assert_close(part_C, expected_C, 1e-6)  # environment weights are float32
    log_prior_C = objective.stats.log_prior_C("dataset")
    assert torch.equal(class_weights.weights_C.float(), class_weights(log_prior_C)), "bit for bit without environments"


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_beta_of_zero_is_no_weighting(num_envs: int) -> None:
    ifl = harness.term_config("ifl", num_envs=num_envs)
    out, batch = harness.output_of(harness.build(), INDEX, 7), harness.batch_of(INDEX)
    options = BaseOptions(class_balanced=ClassBalanced.Config(beta=0.0))
    cfg = ObjectiveConfig(base="class_balanced", base_options=options, terms=Terms(ifl=ifl))
    unweighted = harness.fill(Objective(cfg, harness.stats(), harness.DIMS, seed=0).double())
    plain = harness.fill(harness.build("cross_entropy", ifl=ifl))
    harness.assert_close(*(harness.evaluate(each, out, batch).loss for each in (unweighted, plain)))


@pytest.mark.parametrize("base", ["balanced_softmax", "logit_adjust", "class_balanced", "ldam", "sade", "ride", "paco"])
def test_the_prior_of_the_data_set_is_another_loss(base: str) -> None:
    """What balances classes by weights must not be balanced again by the prior; for LDAM and RIDE, from their weights on."""
    objective = trained(base)
    out, batch = harness.output_of(objective, INDEX, 7), harness.batch_of(INDEX)
    stream = objective(out, batch, harness.PROGRESS).parts["base"]
    objective.cfg = type(objective.cfg)(**{**vars(objective.cfg), "prior": "dataset"})
    assert (objective(out, batch, harness.PROGRESS).parts["base"] - stream).abs() > 1e-4
