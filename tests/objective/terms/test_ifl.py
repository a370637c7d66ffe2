"""IFL's center losses, environment weights, schedule and IRM penalty."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ltcore.objective.memory.base import Memory
from ltcore.objective.objective import Objective, ObjectiveConfig
from ltcore.objective.registry import Terms
from ltcore.objective.terms.ifl.scores import ScoreTable
from ltcore.objective.terms.ifl.term import Ifl
from tests.objective import toy

CENTERS = toy.f64([[0, 0], [1, 1]])
X = toy.f64([[2, 0], [0, 2], [1, 3]])
Y = torch.tensor([0, 0, 1])
PULL = Ifl.Config(num_envs=1, center_weight=1.0, start=0.0)


def penalty(
    cfg: Ifl.Config, x: Tensor, labels: Tensor, logits: Tensor | None = None, progress: float = 0.5, **memories: Memory
) -> Tensor:
    stats = toy.make_stats([5] * (2 if logits is None else logits.shape[1]))
    memories = {"centroids": toy.make_centroids(CENTERS)} | memories
    out = toy.make_output(logits, x)
    return Ifl(cfg, stats, toy.make_dims(x.shape[1], stats))(
        out, toy.make_batch(labels), toy.make_context(stats, progress, **memories)
    )


def table(cfg: Ifl.Config, counts: list[int], num_samples: int) -> ScoreTable:
    spec = Ifl(cfg, toy.make_stats(counts), toy.make_dims(1, toy.make_stats(counts))).memories()["scores"]
    assert isinstance(spec, ScoreTable.Spec)
    return ScoreTable(spec, torch.tensor(counts), num_samples)


def test_l2_closed_form() -> None:
    """The published loss sums over D = 2: 4.0 there, the mean over D here."""
    x = X.clone().requires_grad_()
    loss = penalty(PULL, x, Y)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(4.0 / 2)
    torch.testing.assert_close(x.grad * 2, toy.f64([[1.333333, 0], [0, 1.333333], [0, 1.333333]]), rtol=0, atol=1e-6)


def test_cosine_closed_form() -> None:
    loss = penalty(replace(PULL, center="cosine"), toy.f64([[2, 0]]), torch.tensor([1]))
    assert float(loss) == pytest.approx(0.292893, abs=1e-6)


def test_a_class_without_center_is_not_pulled() -> None:
    known = toy.make_centroids(CENTERS + 1, counts=[3, 0])
    for center in ("l2", "cosine"):
        x = X.clone().requires_grad_()
        penalty(replace(PULL, center=center), x, Y, centroids=known).backward()
        assert x.grad[:2].any()
        assert not x.grad[2].any()
    logits = toy.f64([[0, 9], [0, 9], [9, 0]])
    assert penalty(replace(PULL, center="triplet"), X, Y, logits, centroids=known) == 0  # own or rival center missing


@pytest.mark.parametrize("center", ["l2", "cosine", "triplet"])
@pytest.mark.parametrize("place", [0.0, 1.0], ids=["zero features", "on the center"])
def test_gradients_stay_finite_at_kinks(center: str, place: float) -> None:
    centers = toy.f64([[1, 1], [0, 0]])
    x = torch.full((2, 2), place, dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(2, 2, dtype=torch.float64)
    cfg = replace(PULL, center=center)
    penalty(cfg, x, torch.tensor([0, 1]), logits, centroids=toy.make_centroids(centers)).backward()
    assert x.grad.isfinite().all()


def test_the_pull_grows_at_milestones() -> None:
    cfg = replace(PULL, center_weight=2.0, center_growth=5.0, milestones=(0.4, 0.8))
    values = [float(penalty(cfg, X, Y, progress=p)) for p in (0.39, 0.4, 0.79, 0.8)]
    assert values == pytest.approx([4.0, 20.0, 20.0, 100.0])


def test_irm_vanishes_where_the_logits_are_calibrated() -> None:
    cfg = replace(PULL, center_weight=0.0, irm_weight=1.0)
    labels = torch.tensor([0, 0, 0, 1])
    calibrated = torch.log(toy.f64([[0.75, 0.25]])).expand(4, 2)
    assert float(penalty(cfg, X[:1].expand(4, 2), labels, calibrated)) == pytest.approx(0, abs=1e-12)
    assert float(penalty(cfg, X[:1].expand(4, 2), labels, 2 * calibrated)) > 1e-3


def test_irm_is_the_squared_slope_of_each_environment() -> None:
    gen = torch.Generator().manual_seed(0)
    cfg = Ifl.Config(num_envs=3, center_weight=0.0, irm_weight=0.5, start=0.0)
    logits = torch.randn(6, 3, generator=gen, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    scores = table(cfg, [2, 2, 2], 6)
    scores.relative_EN.copy_(torch.rand(3, 6, generator=gen))
    scores.factor_EC.copy_(torch.rand(3, 3, generator=gen))
    expected = torch.zeros((), dtype=torch.float64)
    for env in range(3):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        ce = torch.nn.functional.cross_entropy(scale * logits, labels, reduction="none")
        weight = scores.relative_EN[env] * scores.factor_EC[env, labels]
        expected += torch.autograd.grad((weight * ce).mean(), scale)[0] ** 2
    ours = penalty(cfg, logits, labels, logits, scores=scores)
    torch.testing.assert_close(ours, 0.5 * expected, rtol=1e-6, atol=1e-9)


def test_looks_across_the_batch_for_irm_alone() -> None:
    assert not Ifl.gathers(PULL)
    assert Ifl.gathers(replace(PULL, irm_weight=1.0))


def test_declares_only_what_it_uses() -> None:
    stats = toy.make_stats([5, 5])

    def declared(**options: object) -> set[str]:
        return set(Ifl(replace(PULL, **options), stats, toy.make_dims(2, stats)).memories())

    assert declared() == {"centroids"}
    assert declared(num_envs=2) == {"centroids", "scores"}
    assert declared(num_envs=2, center_weight=0.0) == {"scores"}
    assert declared(center_weight=0.0, irm_weight=1.0) == set()


@pytest.mark.parametrize(
    ("options", "off"),
    [
        ({"num_envs": 1, "center_weight": 0.0}, True),
        ({"num_envs": 1, "weight": 0.0}, True),
        ({"num_envs": 2, "center_weight": 0.0}, False),
        ({"num_envs": 2, "weight": 0.0}, False),
        ({"num_envs": 1, "center_weight": 0.0, "irm_weight": 0.1}, False),
        ({"num_envs": 1}, False),
    ],
)
def test_off_is_one_environment_without_a_penalty(options: dict[str, object], off: bool) -> None:
    assert Ifl.is_off(Ifl.Config(**options)) is off


def trained(num_envs: int, base: str = "cross_entropy", prior: str = "stream") -> tuple[Objective, Tensor, Tensor]:
    """A linear model's objective after one epoch over 20 samples of three classes; inputs and logits of all samples."""
    counts = [14, 4, 2]
    stats = toy.make_stats(counts)
    ifl = Ifl.Config(num_envs=num_envs, center_weight=0.0, start=0.5) if num_envs > 1 else None
    cfg = ObjectiveConfig(base=base, terms=Terms(ifl=ifl), prior=prior)
    objective = Objective(cfg, stats, toy.make_dims(4, stats), seed=0)
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(20, 4, generator=gen, dtype=torch.float64)
    weight = torch.randn(4, 3, generator=gen, dtype=torch.float64, requires_grad=True)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    objective.observe(toy.make_output((x @ weight).detach(), x), toy.make_batch(labels), 0.4)
    objective.merge(0.5)
    return objective, x, weight


def test_prior_follows_the_environments_unless_told_otherwise() -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([14, 4, 2]))
    batch = toy.make_batch(labels)
    for prior, share in [("stream", [0.516667, 0.266667, 0.216667]), ("dataset", [0.7, 0.2, 0.1])]:
        objective, x, weight = trained(2, "balanced_softmax", prior)
        logits = x @ weight
        scores = objective.memories()["ScoreTable"]
        assert isinstance(scores, ScoreTable)
        ce = torch.nn.functional.cross_entropy(logits + toy.f64(share).log(), labels, reduction="none")
        for progress, weights in [(0.6, scores.weights(batch).mean(0)), (0.4, None)]:
            loss = objective(toy.make_output(logits, x), batch, progress).loss
            natural = torch.nn.functional.cross_entropy(logits + toy.f64([0.7, 0.2, 0.1]).log(), labels)
            torch.testing.assert_close(
                loss, natural if weights is None else (weights * ce).mean(), rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"num_envs": 5}, "num_envs"),
        ({"num_envs": 0}, "num_envs"),
        ({"env_type": "random"}, "env_type"),
        ({"env_type": "correctness", "num_envs": 3}, "num_envs"),
        ({"tail_ratio": 0.9}, "tail_ratio"),
        ({"env_scaling": "minmax"}, "env_scaling"),
        ({"center": "l1"}, "center"),
        ({"center_weight": -1.0}, "center_weight"),
        ({"irm_weight": float("inf")}, "irm_weight"),
        ({"center_growth": 0.0}, "center_growth"),
        ({"milestones": (0.5,)}, "milestones"),
        ({"milestones": (0.9, 0.8)}, "milestones"),
        ({"milestones": (1.0,)}, "milestones"),
    ],
)
def test_options_out_of_range(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} must"):
        Ifl.Config(**wrong)
