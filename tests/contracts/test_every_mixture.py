"""What mixed images promise, for each row of the registry that takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ltcore.batch import Batch, Mix
from ltcore.contracts import harness
from ltcore.objective.objective import Objective

RAGGED = harness.ragged()


@pytest.fixture(params=[row for row in harness.ROWS if harness.takes_mixtures(row)], ids=lambda row: "-".join(row))
def row(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def objective(row: tuple[str, str]) -> Objective:
    return harness.fill(harness.build_row(*row))


def swapped(batch: Batch) -> Batch:
    """The same mixed images, told from their other halves."""
    assert batch.mix is not None
    mix = Mix(batch.labels_B, 1 - batch.mix.lam_B, batch.index_B)
    return replace(batch, labels_B=batch.mix.labels_B, index_B=batch.mix.index_B, mix=mix)


def test_which_half_is_the_first_changes_nothing(objective: Objective) -> None:
    out, batch = harness.output_of(objective, RAGGED, 7), harness.mixed(harness.batch_of(RAGGED))
    one, other = harness.evaluate(objective, out, batch), harness.evaluate(objective, out, swapped(batch))
    harness.assert_close(other.loss, one.loss, 1e-6)  # shares are float32
    for name, grad in one.grads.items():
        harness.assert_close(other.grads[name], grad, 1e-6)


@pytest.mark.parametrize("lam", [1.0, 0.0], ids=["own", "partner"])
def test_the_base_loss_of_a_whole_image_is_the_plain_one(objective: Objective, lam: float) -> None:
    out, batch = harness.output_of(objective, RAGGED, 7), harness.mixed(harness.batch_of(RAGGED))
    assert batch.mix is not None
    whole = replace(batch, mix=replace(batch.mix, lam_B=torch.full((len(RAGGED),), lam)))
    plain = replace(batch if lam else swapped(batch), mix=None)
    parts = [objective(out, each, harness.PROGRESS).parts["base"] for each in (whole, plain)]
    harness.assert_close(*parts)


def test_extreme_logits(objective: Objective) -> None:
    out, batch = harness.output_of(objective, RAGGED, 7), harness.mixed(harness.batch_of(RAGGED))
    extreme = replace(out, logits_BC=(out.logits_BC.detach().sign() * 1e4).requires_grad_())
    result = harness.evaluate(objective, extreme, batch)
    assert result.loss.isfinite() and all(grad.isfinite().all() for grad in result.grads.values())


def test_permuting_pairs_changes_nothing(objective: Objective) -> None:
    order_B = torch.tensor([3, 2, 10, 11, 0, 1, 4, 5, 9, 8, 7, 6])
    plain, permuted = harness.run_mixed(objective, RAGGED), harness.run_mixed(objective, RAGGED[order_B])
    harness.assert_close(permuted.loss, plain.loss)


def test_two_ranks_equal_one(row: tuple[str, str], objective: Objective, two_ranks: list[dict[str, Any]]) -> None:
    one, ranks = harness.run_mixed(objective, RAGGED), [rank["mixed"]["-".join(row)] for rank in two_ranks]
    harness.assert_close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, one.loss)
    parameters = dict(objective.named_parameters())
    for name, grad in one.grads.items():  # DDP divides by the number of ranks
        mine = [rank["grads"][name] / 2 for rank in ranks]
        harness.assert_close(mine[0] + mine[1] if name in parameters else torch.cat(mine), grad)
