"""Environments as loss weights against environments as samplers, by enumeration: no random draw, float64, no batch norm.

The authors draw a batch from the loaders of all environments, with replacement, and average its losses. Here every sample
of the natural stream comes once and is weighted. On a model whose output for a sample does not depend on the batch, both
have the same expected gradient.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ltcore.batch import Mix
from ltcore.objective.objective import Objective, ObjectiveConfig
from ltcore.objective.registry import Terms
from ltcore.objective.terms.ifl.environments import ENV_TYPES, environment_weights
from ltcore.objective.terms.ifl.scores import ScoreTable
from ltcore.objective.terms.ifl.term import Ifl
from tests.objective import toy

COUNTS = [6, 2, 1]
LABELS = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
SIZE, DIM, PROGRESS = sum(COUNTS), 4, 0.5
EXACT = {"rtol": 1e-10, "atol": 1e-12}
ENVIRONMENTS = [(kind, envs) for kind in ENV_TYPES for envs in (2, 3) if kind != "correctness" or envs == 2]

GEN = torch.Generator().manual_seed(0)
X = torch.randn(SIZE, 5, generator=GEN, dtype=torch.float64)
SCORES = torch.rand(SIZE, generator=GEN, dtype=torch.float64)
CENTERS = torch.randn(3, DIM, generator=GEN, dtype=torch.float64)


class Linear:
    """Features x W, logits x W V: both matrices are learned, so the center loss has a gradient as well."""

    def __init__(self) -> None:
        gen = torch.Generator().manual_seed(1)
        self.w = torch.randn(5, DIM, generator=gen, dtype=torch.float64, requires_grad=True)
        self.v = torch.randn(DIM, 3, generator=gen, dtype=torch.float64, requires_grad=True)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.w @ self.v, x @ self.w

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (self.w, self.v))])


def objective_of(
    kind: str, num_envs: int, base: str = "balanced_softmax", env_mode: str = "weight"
) -> tuple[Objective, Tensor]:
    """The objective with its environments built, and their weights [E, N]; tables are kept in float64."""
    stats = toy.make_stats(COUNTS)
    ifl = Ifl.Config(env_type=kind, num_envs=num_envs, env_mode=env_mode, start=0.0, center_weight=0.7)
    objective = Objective(
        ObjectiveConfig(base=base, terms=Terms(ifl=ifl)), stats, toy.make_dims(DIM, stats), seed=0
    ).double()
    objective._named["ifl"]["centroids"] = toy.make_centroids(CENTERS)
    everything = torch.ones(SIZE, dtype=torch.bool)
    relative_EN, factor_EC = environment_weights(
        SCORES,
        SCORES > 0.4,
        everything,
        LABELS,
        stats.counts_C,
        env_type=kind,
        num_envs=num_envs,
        tail_ratio=4.0,
        scaling="quantile",
    )
    weights_EN = relative_EN * factor_EC[:, LABELS]
    table = objective.memories()["ScoreTable"]
    assert isinstance(table, ScoreTable)
    table.relative_EN, table.factor_EC = relative_EN, factor_EC
    table.mean_weight_C = torch.zeros(3, dtype=torch.float64).index_add_(0, LABELS, weights_EN.mean(0)) / stats.counts_C
    return objective, weights_EN


def weighted(objective: Objective, model: Linear, rows: Tensor, mix: Mix | None = None) -> Tensor:
    """The package's loss of a batch of the natural stream."""
    x = X[rows] if mix is None else mix.lam_B[:, None] * X[rows] + (1 - mix.lam_B[:, None]) * X[mix.index_B]
    logits, features = model(x)
    batch = replace(toy.make_batch(LABELS[rows], rows), mix=mix)
    return objective(toy.make_output(logits, features), batch, PROGRESS).loss


def drawn(objective: Objective, model: Linear, x: Tensor, labels: list[Tensor], shares: list[float]) -> Tensor:
    """The authors' loss of a batch that was drawn from the environments: no weights; centers as in their center loss."""
    logits, features = model(x)
    prior = objective._log_prior_now(objective._terms)
    loss = torch.zeros((), dtype=torch.float64)
    for y, share in zip(labels, shares, strict=True):
        loss = loss + share * torch.nn.functional.cross_entropy(logits + prior, y)
        loss = loss + share * 0.7 * (features - CENTERS[y]).square().mean(1).mean()
    return loss


def from_environments(model: Linear, objective: Objective, weights_EN: Tensor) -> Tensor:
    """The expected gradient of a batch with one sample of each environment: a sum over all such batches."""
    total = torch.zeros(())
    for rows in itertools.product(range(SIZE), repeat=len(weights_EN)):
        chance = (weights_EN / SIZE)[range(len(weights_EN)), rows].prod()
        total = total + chance * model.gradient(drawn(objective, model, X[list(rows)], [LABELS[list(rows)]], [1.0]))
    return total


def from_the_stream(model: Linear, objective: Objective) -> Tensor:
    """The mean gradient over all batches of two different samples, weighted."""
    batches = itertools.combinations(range(SIZE), 2)
    return torch.stack([model.gradient(weighted(objective, model, torch.tensor(rows))) for rows in batches]).mean(0)


@pytest.mark.parametrize(("kind", "num_envs"), ENVIRONMENTS)
def test_weights_have_mean_one_in_every_environment(kind: str, num_envs: int) -> None:
    _, weights_EN = objective_of(kind, num_envs)
    torch.testing.assert_close(weights_EN.mean(1), torch.ones(num_envs, dtype=torch.float64), **EXACT)
    pairs_NN = weights_EN.mean(0)[:, None] * weights_EN.mean(0)
    torch.testing.assert_close(pairs_NN.mean(), torch.ones((), dtype=torch.float64), **EXACT)
    if kind != "uniform":
        assert weights_EN.mean(0).std() > 0.1, "the environments differ"


@pytest.mark.parametrize(("kind", "num_envs"), ENVIRONMENTS)
def test_the_gradient_is_the_expected_gradient_of_drawing_from_the_environments(kind: str, num_envs: int) -> None:
    model, (objective, weights_EN) = Linear(), objective_of(kind, num_envs)
    sampling = from_environments(model, objective, weights_EN)
    torch.testing.assert_close(from_the_stream(model, objective), sampling, **EXACT)


@pytest.mark.parametrize(("kind", "num_envs"), ENVIRONMENTS)
def test_showing_samples_more_or_less_often_has_the_gradient_of_weighing_them(kind: str, num_envs: int) -> None:
    model, (objective, weights_EN) = Linear(), objective_of(kind, num_envs)
    repeating, _ = objective_of(kind, num_envs, env_mode="repeat")
    times_N = repeating.draws_N(PROGRESS, LABELS)
    assert times_N is not None and objective.draws_N(PROGRESS, LABELS) is None
    torch.testing.assert_close(times_N, weights_EN.mean(0), **EXACT)
    shown = sum(n * model.gradient(weighted(repeating, model, torch.tensor([i]))) for i, n in enumerate(times_N / SIZE))
    torch.testing.assert_close(shown, from_the_stream(model, objective), **EXACT)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("kind", "num_envs"), [("intra", 2), ("inter_intra", 3)])
def test_mixed_images_have_the_expectation_of_mixing_what_the_environments_draw(
    kind: str, num_envs: int, lam: float
) -> None:
    """Both halves come from the joint batch of all environments; a natural pair has the product of two weights.

    Over all pairs of different samples, which are those that a natural batch can hold.
    """
    model, (objective, weights_EN) = Linear(), objective_of(kind, num_envs)
    chance_N = weights_EN.mean(0) / SIZE
    sampling = ours = torch.zeros(())
    for pair in itertools.permutations(range(SIZE), 2):
        i, j = torch.tensor([pair[0]]), torch.tensor([pair[1]])
        x = lam * X[i] + (1 - lam) * X[j]
        unweighted = drawn(objective, model, x, [LABELS[i], LABELS[j]], [lam, 1 - lam])
        sampling = sampling + chance_N[list(pair)].prod() * model.gradient(unweighted)
        mix = Mix(LABELS[j], torch.tensor([lam], dtype=torch.float64), j)
        ours = ours + model.gradient(weighted(objective, model, i, mix)) / SIZE**2
    torch.testing.assert_close(ours, sampling, **EXACT)


def test_the_odd_image_of_a_mixed_batch_has_its_own_weight_alone() -> None:
    model, (objective, _) = Linear(), objective_of("intra", 2)
    i = torch.tensor([7])
    exclusive = weighted(objective, model, i, Mix(LABELS[i], torch.ones(1, dtype=torch.float64), i))
    assert torch.equal(exclusive, weighted(objective, model, i))


def test_batch_norm_makes_them_differ() -> None:
    """Where a sample's output depends on its batch, weights and draws are two different things."""

    class Standardized(Linear):
        def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = x @ self.w
            features = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
            return features @ self.v, features

    model, (objective, weights_EN) = Standardized(), objective_of("intra", 2)
    sampling = from_environments(model, objective, weights_EN)
    assert (from_the_stream(model, objective) - sampling).abs().max() > 1e-2
