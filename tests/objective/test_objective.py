"""The sum of base, terms and memories."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ltcore.batch import Mix
from ltcore.objective.objective import Objective, ObjectiveConfig, make_objective
from ltcore.objective.registry import Terms
from ltcore.objective.terms.dro import Dro
from ltcore.objective.terms.ifl.term import Ifl
from ltcore.stats import ClassStats
from tests.objective import toy

STATS = toy.make_stats([6, 3, 1])
LABELS = torch.tensor([0, 2, 1, 0])


def make(base: str = "balanced_softmax", stats: ClassStats = STATS, **terms: object) -> Objective:
    return Objective(ObjectiveConfig(base=base, terms=Terms(**terms)), stats, toy.make_dims(5, stats), seed=0)


def outputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return (
        torch.randn(4, 3, generator=gen, dtype=torch.float64),
        torch.randn(4, 5, generator=gen, dtype=torch.float64, requires_grad=True),
    )


def test_parts_and_weights_make_the_loss() -> None:
    objective = make(dro=Dro.Config(weight=0.3, start=0.1), ifl=Ifl.Config(num_envs=1, weight=0.5, start=0.4))
    logits, z = outputs()
    out, batch = toy.make_output(logits, z), toy.make_batch(LABELS)
    objective.observe(out, batch, 0.1)
    objective.merge(0.2)
    for progress, live in [(0.05, ()), (0.1, ("dro",)), (0.5, ("dro", "ifl"))]:
        result = objective(out, batch, progress)
        assert set(result.parts) == {"base", *live, *(["dro_excess"] if live else [])}
        expected = result.parts["base"] + sum(objective.terms[n].cfg.weight * result.parts[n] for n in live)
        torch.testing.assert_close(result.loss.detach(), expected)
        assert not any(part.requires_grad for part in result.parts.values())


def test_mixed_labels_mix_the_base_loss() -> None:
    objective = make("cross_entropy")
    logits, z = outputs()
    mix = Mix(torch.tensor([1, 1, 0, 2]), torch.tensor([0.3, 1.0, 0.0, 0.5]), torch.tensor([1, 0, 3, 2]))
    batch = toy.make_batch(LABELS)
    loss = objective(toy.make_output(logits, z), dataclasses.replace(batch, mix=mix), 0.0).loss
    log_p = logits.log_softmax(1)
    rows = torch.arange(4)
    expected = -(mix.lam_B * log_p[rows, LABELS] + (1 - mix.lam_B) * log_p[rows, mix.labels_B]).mean()
    torch.testing.assert_close(loss, expected)


def test_prior_of_a_resampled_stream() -> None:
    stream = dataclasses.replace(STATS, stream_counts_C=torch.tensor([2.0, 2.0, 2.0]))
    logits, z = outputs()
    out, batch = toy.make_output(logits, z), toy.make_batch(LABELS)
    plain = make("cross_entropy")(out, batch, 0.5).loss
    torch.testing.assert_close(make(stats=stream)(out, batch, 0.5).loss, plain)  # a uniform prior is none
    assert not torch.allclose(make()(out, batch, 0.5).loss, plain)


def test_a_loop_with_a_sampler_of_its_own() -> None:
    """Class-balanced draws: no prior is left to add, and weights by class must not balance them again."""
    logits, z = outputs()
    out, batch = toy.make_output(logits, z), toy.make_batch(LABELS)

    def loss(base: str, stream_counts: list[float] | None, **options: float) -> torch.Tensor:
        objective = make_objective(base, class_counts=[6, 2, 1], stream_counts=stream_counts, features=5, **options)
        return objective(out, batch, 0.0).loss

    plain, even = loss("cross_entropy", None), [2.0, 2.0, 2.0]
    torch.testing.assert_close(loss("balanced_softmax", even), plain)
    inverse_counts = loss("class_balanced", even, beta=1 - 1e-9)
    torch.testing.assert_close(inverse_counts, plain / (1 / 6 + 1 / 2 + 1), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(loss("class_balanced", None, beta=1 - 1e-9), plain / (1 / 6 + 1 / 2 + 1))
    with pytest.raises(ValueError, match="stream_counts has 1 class, class_counts 3"):
        loss("balanced_softmax", [2.0])


def test_shares_that_change_from_epoch_to_epoch() -> None:
    """As ``stream_counts_C``, but said anew before each epoch; None goes back to the natural stream."""
    logits, z = outputs()
    out, batch = toy.make_output(logits, z), toy.make_batch(LABELS)
    objective, shares_C = make(), toy.f64([0.2, 0.5, 0.3])
    natural = objective(out, batch, 0.5).loss
    objective.sample_classes(shares_C)
    fixed = make(stats=dataclasses.replace(STATS, stream_counts_C=10 * shares_C))
    torch.testing.assert_close(objective(out, batch, 0.5).loss, fixed(out, batch, 0.5).loss)
    torch.testing.assert_close(objective.stream_shares_C(0.5), shares_C)
    place = objective.stream_shares_C(0.5).data_ptr()
    objective.sample_classes(toy.f64([0.1, 0.1, 0.8]))
    assert torch.equal(shares_C, toy.f64([0.2, 0.5, 0.3])), "the caller's tensor is the caller's"
    assert objective.stream_shares_C(0.5).data_ptr() == place, "CUDA graphs read it where it lies"
    objective.sample_classes(None)
    assert torch.equal(objective(out, batch, 0.5).loss, natural)
    torch.testing.assert_close(objective.stream_shares_C(0.5), toy.f64([0.6, 0.3, 0.1]))
    of_data = Objective(
        ObjectiveConfig(base="balanced_softmax", prior="dataset"), STATS, toy.make_dims(5, STATS), seed=0
    )
    of_data.sample_classes(shares_C)
    assert torch.equal(of_data(out, batch, 0.5).loss, natural)


def test_environments_on_a_resampled_stream_multiply_its_shares() -> None:
    stream = dataclasses.replace(STATS, stream_counts_C=torch.tensor([2.0, 4.0, 2.0]))
    objective = make(stats=stream, ifl=Ifl.Config(start=0.0))
    objective.memories()["ScoreTable"].mean_weight_C.copy_(toy.f64([0.5, 1.0, 2.0]))  # type: ignore[attr-defined]
    share_C = objective.terms["ifl"].class_shares(objective._named["ifl"])
    torch.testing.assert_close(share_C, toy.f64([1, 4, 4]) / 9)


def test_what_the_network_and_the_loop_must_know() -> None:
    assert make().needs == frozenset()
    assert list(make(dro=Dro.Config(), ifl=Ifl.Config()).memories()) == ["ClassCentroids", "ScoreTable"]


def test_parameters_of_a_term_get_a_gradient_before_it_starts() -> None:
    """DistributedDataParallel waits for every parameter."""
    objective = make(dro=Dro.Config(radius_mode="learned_compat", start=0.5))
    logits, z = outputs()
    objective(toy.make_output(logits, z), toy.make_batch(LABELS), 0.0).loss.backward()
    (radii_C,) = objective.parameters()
    assert radii_C.grad is not None
    assert not radii_C.grad.any()


def test_dtype_follows_the_logits() -> None:
    logits, z = outputs()
    objective, batch = make(dro=Dro.Config(start=0.0), ifl=Ifl.Config(start=0.0)), toy.make_batch(LABELS)
    for dtype, expected in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ]:
        assert objective(toy.make_output(logits.to(dtype), z.to(dtype)), batch, 0.5).loss.dtype == expected
