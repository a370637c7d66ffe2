"""What every base loss promises, for each row of the registry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltcore.objective.interface import LossContext
from ltcore.objective.objective import Objective, ObjectiveConfig
from ltcore.objective.registry import BASES, BaseOptions
from tests.contracts import harness


@pytest.fixture(params=harness.BASE_ROWS)
def objective(request: pytest.FixtureRequest) -> Objective:
    return harness.fill(harness.build(request.param))


def per_sample(objective: Objective, index_B: torch.Tensor) -> torch.Tensor:
    """[B] base losses as the objective would call for them."""
    prior_C = objective.stats.log_prior_C("dataset", torch.float64)
    ctx = LossContext(objective.stats, prior_C, harness.PROGRESS, objective._named["base"])
    return objective.base(harness.output_of(objective, index_B), harness.batch_of(index_B).labels_B, ctx)


def test_one_number_per_sample(objective: Objective) -> None:
    loss_B = per_sample(objective, harness.ragged())
    assert loss_B.shape == (len(harness.ragged()),)
    assert loss_B.isfinite().all()


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


def test_loss_is_the_mean_over_samples(objective: Objective) -> None:
    out, batch = harness.output_of(objective, harness.ragged()), harness.batch_of(harness.ragged())
    result = objective(out, batch, harness.PROGRESS)
    harness.assert_close(result.loss, per_sample(objective, harness.ragged()).mean())
    harness.assert_close(result.parts["base"], result.loss.detach())


def test_permuting_the_batch_permutes_the_losses(objective: Objective) -> None:
    order_B = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    loss_B = per_sample(objective, harness.ragged())
    harness.assert_close(per_sample(objective, harness.ragged()[order_B]), loss_B[order_B])


@pytest.mark.parametrize("base", harness.BASE_ROWS)
def test_a_class_without_training_images(base: str) -> None:
    counts_C = torch.tensor([*harness.COUNTS[:-1], 0])
    stats = replace(harness.stats(), counts_C=counts_C)
    objective = Objective(harness.objective_config(base), stats, harness.DIMS, seed=0).double()
    harness.fill(objective, samples=71)
    result = harness.run(objective, harness.ragged()[:-1])
    assert result.loss.isfinite() and all(grad.isfinite().all() for grad in result.grads.values())


def test_options_of_a_base_that_is_not_chosen_are_refused() -> None:
    with pytest.raises(ValueError, match=r"base_options\.logit_adjust has no effect with base='cross_entropy'"):
        options = BaseOptions(logit_adjust=BASES["logit_adjust"].build.Config(tau=2.0))
        ObjectiveConfig(base_options=options)
