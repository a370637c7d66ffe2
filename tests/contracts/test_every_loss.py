"""What every base loss promises, for each row of the registry."""

from __future__ import annotations

import pytest
import torch

from ltcore.contracts import harness, losses
from ltcore.objective.objective import Objective, ObjectiveConfig
from ltcore.objective.registry import BASES, BaseOptions


@pytest.fixture(params=harness.BASE_ROWS)
def objective(request: pytest.FixtureRequest) -> Objective:
    return harness.fill(harness.build(request.param))


@pytest.mark.parametrize("base", harness.BASE_ROWS)
def test_one_number_per_sample(base: str) -> None:
    losses.one_number_per_sample(("base", base))


def test_shares_are_those_of_the_stream(objective: Objective) -> None:
    """Said before an epoch: the natural ones change nothing, others replace the prior, and the next epoch's replace them."""
    out, batch = harness.output_of(objective, harness.ragged()), harness.batch_of(harness.ragged())

    def loss(shares_C: torch.Tensor | None) -> torch.Tensor:
        objective.sample_classes(shares_C)
        return objective(out, batch, harness.PROGRESS).loss.detach()

    plain, natural_C = loss(None), objective.stats.log_prior_C("dataset", torch.float64).exp()
    equal = loss(torch.full((harness.CLASSES,), 1 / harness.CLASSES))
    assert equal.isfinite()
    harness.assert_close(loss(natural_C), plain)
    assert torch.equal(loss(None), plain)


@pytest.mark.parametrize("base", harness.BASE_ROWS)
def test_loss_is_the_mean_over_samples(base: str) -> None:
    losses.loss_is_the_mean_over_samples(("base", base))


@pytest.mark.parametrize("base", harness.BASE_ROWS)
def test_permuting_the_batch_permutes_the_losses(base: str) -> None:
    losses.permuting_the_batch_permutes_the_losses(("base", base))


@pytest.mark.parametrize("base", harness.BASE_ROWS)
def test_a_class_without_training_images(base: str) -> None:
    losses.a_class_without_training_images(("base", base))


def test_options_of_a_base_that_is_not_chosen_are_refused() -> None:
    with pytest.raises(ValueError, match=r"base_options\.logit_adjust has no effect with base='cross_entropy'"):
        options = BaseOptions(logit_adjust=BASES["logit_adjust"].build.Config(tau=2.0))
        ObjectiveConfig(base_options=options)
