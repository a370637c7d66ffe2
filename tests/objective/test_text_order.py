"""``prior='lexicographic_compat'``: the class counts of GLT's published code, which sorts class numbers as text."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from ltcore.contracts import harness
from ltcore.objective.objective import Objective, ObjectiveConfig
from ltcore.objective.registry import BASES, Terms
from ltcore.stats import ClassStats
from tests.objective import toy

COMPAT = "lexicographic_compat"
ORDER = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
AFFECTED = ["balanced_softmax", "ldam", "ride", "sade"]
RAGGED = harness.ragged()


def objective_of(base: str, prior: str, stats: ClassStats | None = None, **terms: object) -> Objective:
    cfg = ObjectiveConfig(base=base, prior=prior, terms=Terms(**terms))
    return Objective(cfg, stats or harness.stats(), harness.DIMS, seed=0).double()


def test_twelve_classes_take_each_others_counts() -> None:
    stats = harness.stats()
    assert stats.in_text_order().counts_C.tolist() == [harness.COUNTS[c] for c in ORDER]
    assert stats.in_text_order().shot_groups == stats.shot_groups
    thousand = toy.make_stats(range(1000, 0, -1))
    assert (
        int((thousand.in_text_order().counts_C == thousand.counts_C).sum()) == 12
    )  # of ImageNet's classes stay in place


def test_balanced_softmax_by_hand() -> None:
    objective = objective_of("balanced_softmax", COMPAT)
    out, batch = harness.output_of(objective, RAGGED), harness.batch_of(RAGGED)
    log_prior = (toy.f64(harness.COUNTS) / harness.SAMPLES).log()[torch.tensor(ORDER)]
    expected = cross_entropy(out.logits_BC + log_prior, batch.labels_B)
    harness.assert_close(objective(out, batch, 0.5).loss, expected)


@pytest.mark.parametrize("base", AFFECTED)
def test_it_is_the_loss_of_a_data_set_whose_counts_lie_in_that_order(base: str) -> None:
    """Margins, weights and temperatures included, and unlike the right one."""
    misread = dataclasses.replace(harness.stats(), counts_C=torch.tensor([harness.COUNTS[c] for c in ORDER]))
    compat = harness.run(objective_of(base, COMPAT), RAGGED)
    harness.assert_close(compat.loss, harness.run(objective_of(base, "dataset", misread), RAGGED).loss)
    assert (compat.loss - harness.run(objective_of(base, "dataset"), RAGGED).loss).abs() > 1e-3


@pytest.mark.parametrize("base", AFFECTED)
def test_up_to_ten_classes_it_is_the_prior_of_the_data_set_bit_for_bit(base: str) -> None:
    stats, logits = toy.make_stats([9, 8, 7, 6, 5, 4, 3, 2, 2, 1]), torch.randn(3, 3, 10, dtype=torch.float64)
    logits = logits if BASES[base].build.expert_head else logits[:, 0]
    out, batch = toy.make_output(logits), toy.make_batch([0, 4, 9])
    losses = [objective_of(base, prior, stats)(out, batch, 0.9).loss for prior in (COMPAT, "dataset")]
    assert torch.equal(*losses)


def test_terms_keep_the_right_counts_and_environments_leave_it_alone() -> None:
    """GLT's balanced softmax knows nothing of the re-weighted stream either."""
    terms = {"dro": harness.term_config("dro"), "ifl": harness.term_config("ifl", weight=0.0)}
    compat, plain = (harness.fill(objective_of("balanced_softmax", prior, **terms)) for prior in (COMPAT, "dataset"))
    out, batch = harness.output_of(compat, RAGGED, 7), harness.batch_of(RAGGED)
    ours, right = (objective(out, batch, harness.PROGRESS) for objective in (compat, plain))
    assert torch.equal(ours.parts["dro"], right.parts["dro"])
    unweighted = objective_of("balanced_softmax", COMPAT)(out, batch, harness.PROGRESS)
    assert torch.equal(ours.parts["base"], unweighted.parts["base"])


def test_refused_where_the_published_code_counts_rightly() -> None:
    assert sorted(name for name, row in BASES.items() if row.build.text_order_in_glt) == AFFECTED
    with pytest.raises(ValueError, match=r"^prior must be 'stream' or 'dataset' with base='logit_adjust'.*sade$"):
        ObjectiveConfig(base="logit_adjust", prior=COMPAT)
    with pytest.raises(ValueError, match=r"^prior must be one of stream, dataset, lexicographic_compat, got 'text'"):
        ObjectiveConfig(prior="text")
