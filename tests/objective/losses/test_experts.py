"""RIDE and SADE: closed forms, and how they go together with heads, terms, priors and mixup."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softmax

from ltcore.config.schema import RunConfig
from ltcore.contracts import harness
from ltcore.errors import ConfigError
from ltcore.objective.interface import Base
from ltcore.objective.losses.balanced_softmax import BalancedSoftmax
from ltcore.objective.losses.ldam import Ldam
from ltcore.objective.losses.ride import Ride, divergence
from ltcore.objective.losses.sade import Sade, reversed_log_prior
from ltcore.objective.objective import Objective
from ltcore.objective.registry import BASES, TERMS
from ltcore.stats import ClassStats
from tests.ddp import run_ranks
from tests.objective import toy

STATS = toy.make_stats([7, 2, 1])  # prior (.7, .2, .1)
LABELS = torch.tensor([0, 1, 2])
LOGITS = toy.f64([[1, 0, -1]] * 3)
EQUAL = torch.stack([LOGITS] * 3, 1)
DIFFERENT = torch.stack([LOGITS, 2 * LOGITS.flip(1), LOGITS.roll(1, 1) + 3], 1)
INDEPENDENT = {"diversity_weight": 0.0, "max_margin": 0.0, "beta": 0.0}


def losses(
    base: type[Base], logits: Tensor, stats: ClassStats = STATS, progress: float = 0.9, **options: Any
) -> Tensor:
    built = base(base.Config(**options), stats, toy.make_dims(1, stats))  # type: ignore[attr-defined]
    labels = LABELS[: len(logits)]
    return built(toy.make_output(logits), labels, toy.make_context(stats, progress))


def plain(logits_BEC: Tensor) -> Tensor:
    """[B] sum of the cross-entropies of the experts."""
    return torch.stack([cross_entropy(expert, LABELS, reduction="none") for expert in logits_BEC.unbind(1)]).sum(0)


def naive_divergence(logits_EC: Tensor) -> float:
    target = softmax(logits_EC.mean(0), 0).tolist()
    experts = softmax(logits_EC, 1).tolist()
    return sum(m * math.log(m / p) for expert in experts for m, p in zip(target, expert, strict=True))


# ---- RIDE


def test_ride_without_anything_is_a_sum_of_cross_entropies() -> None:
    torch.testing.assert_close(losses(Ride, DIFFERENT, **INDEPENDENT), plain(DIFFERENT))


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_ride_without_diversity_is_a_sum_of_ldam(progress: float) -> None:
    each = [losses(Ldam, expert, progress=progress) for expert in DIFFERENT.unbind(1)]
    torch.testing.assert_close(losses(Ride, DIFFERENT, progress=progress, diversity_weight=0.0), sum(each))


def test_equal_experts_do_not_diverge() -> None:
    torch.testing.assert_close(divergence(EQUAL), toy.f64([0, 0, 0]))


def test_divergence_is_the_sum_of_kl_and_its_target_carries_no_gradient() -> None:
    torch.testing.assert_close(divergence(DIFFERENT).tolist(), [naive_divergence(sample) for sample in DIFFERENT])
    logits = DIFFERENT.clone().requires_grad_()
    (ours,) = torch.autograd.grad(divergence(logits).sum(), logits)
    target = softmax(logits.detach().mean(1, keepdim=True), 2)
    kl = (target * (target.log() - logits.log_softmax(2))).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(kl, logits)[0])


@pytest.mark.parametrize(
    ("spread", "relative"), [(0.05, (1, 0.928910, 0.914692)), (0.02, (1, 0.970646, 0.964775)), (0.0, (1, 1, 1))]
)
def test_temperatures_by_class_begin_with_the_weights(spread: float, relative: tuple[float, ...]) -> None:
    options = {**INDEPENDENT, "diversity_weight": 0.2, "temperature": 2.0, "temperature_spread": spread}
    for progress, temperature in [(0.79, 2 * toy.f64([1, 1, 1])), (0.8, 2 * toy.f64(relative))]:
        kl = toy.f64([naive_divergence(sample / temperature) for sample in DIFFERENT])
        expected = plain(DIFFERENT) - 0.2 * temperature.mean() ** 2 * kl
        torch.testing.assert_close(losses(Ride, DIFFERENT, progress=progress, **options), expected, rtol=0, atol=1e-5)


def test_ride_weights_are_those_of_ldam_from_the_same_start() -> None:
    early, late = (losses(Ride, DIFFERENT, progress=p, temperature_spread=0.0) for p in (0.79, 0.8))
    assert early[2] < late[2] and early[0] > late[0]  # the rarest class and the most frequent one
    assert Ride.cosine_scale(Ride.Config(scale=20.0)) == 20.0
    for norm, gathers in [("batch", False), ("batch_sum", True)]:
        assert Ride.gathers(Ride.Config(weight_norm=norm)) is gathers


# ---- SADE


def test_reversed_prior_closed_form() -> None:
    prior = STATS.log_prior_C("dataset", torch.float64)
    torch.testing.assert_close(reversed_log_prior(prior), prior.flip(0))
    adjusted = prior - 2 * reversed_log_prior(prior)
    torch.testing.assert_close(adjusted, toy.f64([4.248495, 1.609438, -1.589235]), rtol=0, atol=1e-6)


def test_with_tau_one_the_third_expert_is_adjusted_by_the_ratio_of_the_two_priors() -> None:
    prior = toy.f64([0.7, 0.2, 0.1])
    third = losses(Sade, torch.zeros_like(EQUAL), tau=1.0) - math.log(3) + prior.log()  # less those of the first two
    torch.testing.assert_close(third, -(prior / prior.flip(0)).log().log_softmax(0))


def test_sade_closed_form() -> None:
    """The third expert is what cross-entropy and balanced softmax leave of the sum."""
    first, second = losses(BASES["cross_entropy"].build, LOGITS), losses(BalancedSoftmax, LOGITS)
    third = losses(Sade, EQUAL) - first - second
    torch.testing.assert_close(third, toy.f64([0.026322, 3.665380, 7.864053]), rtol=0, atol=2e-6)
    without = losses(Sade, EQUAL, tau=0.0)
    torch.testing.assert_close(without, first + 2 * second)


def test_a_uniform_prior_makes_all_three_alike() -> None:
    torch.testing.assert_close(losses(Sade, DIFFERENT, toy.make_stats([4, 4, 4])), plain(DIFFERENT))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tied_classes_share_their_places_whatever_their_order(dtype: torch.dtype) -> None:
    counts = torch.tensor([10, 5, 2, 5, 1])
    expected = toy.f64([1, 3.5, 5, 3.5, 10])  # sorted 10 5 5 2 1 against 1 2 5 5 10
    for order in (torch.arange(5), torch.tensor([3, 1, 4, 0, 2])):
        prior = (counts[order] / 23).log().to(dtype)
        prior = prior + torch.finfo(dtype).eps * toy.f64([1, -1, 1, -1, 1]).to(dtype)  # equal up to rounding
        ours = reversed_log_prior(prior)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.exp().double(), expected[order] / 23, rtol=1e-5, atol=0)


def test_tied_classes_in_order_of_their_numbers() -> None:
    prior = (torch.tensor([10, 5, 2, 5, 1]) / 23).log()
    ours = reversed_log_prior(prior, "order").exp() * 23
    torch.testing.assert_close(ours, torch.tensor([1.0, 2, 5, 5, 10]))


def test_a_class_without_samples_stays_finite() -> None:
    for base in (Ride, Sade):
        assert losses(base, DIFFERENT, toy.make_stats([8, 2, 0])).isfinite().all()


# ---- both


@pytest.mark.parametrize("base", [Ride, Sade])
def test_logits_of_one_head_are_refused(base: type[Base]) -> None:
    with pytest.raises(ValueError, match=r"needs logits \[B, .*got shape \(3, 3\)"):
        losses(base, LOGITS)


def test_sade_refuses_other_numbers_of_experts() -> None:
    with pytest.raises(ValueError, match=r"needs logits \[B, 3, C\], one expert for each.*\(3, 2, 3\)"):
        losses(Sade, EQUAL[:, :2])
    assert losses(Ride, EQUAL[:, :2]).shape == (3,)


COSINE = {"model.head": "cosine", "model.cosine_scale": 30.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.base": "sade"}, r"model.num_experts=1 .*needs several experts"),
        ({"objective.base": "sade", "model.num_experts": 4}, r"objective.base=sade, which has one loss for each of 3"),
        ({"objective.base": "ride"} | COSINE, r"model.num_experts=1 .*needs several experts"),
        ({"objective.base": "ride", "model.num_experts": 3}, r"objective.base=ride, whose margins .*model.head=cosine"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(name="plain").replace(changes)


def test_what_goes_together() -> None:
    RunConfig(name="plain").replace({"objective.base": "ride", "model.num_experts": 4} | COSINE)
    ride_mixup = {"objective.base": "ride", "model.num_experts": 2, "augment.mixup_alpha": 1.0}
    RunConfig(name="plain").replace(ride_mixup | COSINE)
    RunConfig(name="plain").replace({"objective.base": "sade", "model.num_experts": 3, "augment.mixup_alpha": 1.0})


def with_terms(base: str) -> Objective:
    """All three terms over a base for experts, memories filled."""
    return harness.fill(harness.build(base, **{name: harness.term_config(name) for name in TERMS}))


@pytest.mark.parametrize("base", ["ride", "sade"])
def test_terms_add_their_parts(base: str) -> None:
    objective = with_terms(base)
    out, batch = harness.output_of(objective, harness.ragged(), 7), harness.batch_of(harness.ragged())
    result = objective(out, batch, harness.PROGRESS)
    assert {"base", *TERMS} <= set(result.parts)
    assert all(part != 0 and part.isfinite() for part in result.parts.values())


def test_sade_takes_the_prior_of_the_stream() -> None:
    """Environments that balance classes change the prior, and with it the second and third expert."""
    ifl = replace(harness.term_config("ifl"), weight=0.0)
    weighted = harness.fill(harness.build("sade", ifl=ifl))
    out, batch = harness.output_of(weighted, harness.ragged(), 7), harness.batch_of(harness.ragged())
    stream = weighted(out, batch, harness.PROGRESS).parts["base"]
    weighted.cfg = replace(weighted.cfg, prior="dataset")
    dataset = weighted(out, batch, harness.PROGRESS).parts["base"]
    torch.testing.assert_close(dataset, harness.build("sade")(out, batch, harness.PROGRESS).parts["base"])
    assert (stream - dataset).abs() > 1e-2


def _on_a_rank() -> dict[str, dict[str, Any]]:
    """Both bases under all terms, and RIDE with the published normalization."""
    mine = harness.my_rows(harness.ragged())
    results = {base: harness.run(with_terms(base), mine) for base in ("ride", "sade")}
    objective = harness.build("ride")
    objective.base = Ride(Ride.Config(weight_norm="batch_sum"), objective.stats, toy.make_dims(1, objective.stats))
    return {name: vars(result) for name, result in (results | {"batch_sum": harness.run(objective, mine)}).items()}


def test_two_ranks_equal_one_under_all_terms_and_with_weights_summed_over_ranks() -> None:
    ranks = run_ranks(_on_a_rank, 2)
    for name, one in _on_a_rank().items():
        harness.assert_close((ranks[0][name]["loss"] + ranks[1][name]["loss"]) / 2, one["loss"])
        for field, grad in one["grads"].items():
            harness.assert_close(torch.cat([rank[name]["grads"][field] / 2 for rank in ranks]), grad)


@pytest.mark.parametrize(
    ("config", "wrong", "values"),
    [
        (Ride.Config, "diversity_weight", (-0.2, float("inf"))),
        (Ride.Config, "temperature", (0.0, float("nan"))),
        (Ride.Config, "temperature_spread", (-0.1, 1.1)),
        (Ride.Config, "drw_start", (1.0,)),
        (Sade.Config, "tau", (-1.0, float("inf"))),
        (Sade.Config, "ties", ("first",)),
    ],
)
def test_options_out_of_range(config: type, wrong: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{wrong}"):
            config(**{wrong: value})
