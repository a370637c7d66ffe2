"""The score table: what is averaged, when environments are rebuilt, what unseen samples weigh."""

from __future__ import annotations

import torch

from ltcore.objective.terms.ifl.environments import environment_weights
from ltcore.objective.terms.ifl.scores import ScoreTable
from tests.objective import toy

COUNTS = torch.tensor([7, 3])
LABELS = torch.repeat_interleave(torch.arange(2), COUNTS)
SPEC = ScoreTable.Spec("intra", 2, 4.0, "quantile", (0.4, 0.8))


def logits(epoch: int) -> torch.Tensor:
    return torch.randn(10, 2, generator=torch.Generator().manual_seed(epoch), dtype=torch.float64)


def observe(table: ScoreTable, index: torch.Tensor, epoch: int) -> None:
    table.observe(toy.make_output(logits(epoch)[index]), toy.make_batch(LABELS[index], index))


def expected_weights(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    relative_EN, factor_EC = environment_weights(
        scores, seen, seen, LABELS, COUNTS, env_type="intra", num_envs=2, tail_ratio=4.0, scaling="quantile"
    )
    return relative_EN * factor_EC[:, LABELS]


def probability(epoch: int) -> torch.Tensor:
    return logits(epoch).softmax(1)[torch.arange(10), LABELS]


def test_scores_are_the_mean_over_the_epoch_and_unseen_samples_are_neutral() -> None:
    table = ScoreTable(SPEC, COUNTS, 10)
    observe(table, torch.tensor([0, 1, 2, 3, 4, 5]), 0)
    observe(table, torch.tensor([0, 1, 2, 0]), 1)  # sample 0 three times, twice in one batch
    table.merge(0.4)
    first, second = probability(0), probability(1)
    scores = torch.zeros(10, dtype=torch.float64)
    scores[:6] = first[:6]
    scores[1:3] = (first[1:3] + second[1:3]) / 2
    scores[0] = (first[0] + 2 * second[0]) / 3
    expected = expected_weights(scores, torch.arange(10) < 6)
    everything = toy.make_batch(LABELS)
    torch.testing.assert_close(table.weights(everything).double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(table.weights(everything)[1, 7:], torch.full((3,), 10 / 2 / 3))  # class 1 never came
    torch.testing.assert_close(table.mean_weight_C[0], expected.mean(0)[:7].mean(), rtol=1e-6, atol=1e-6)


def test_rebuilt_only_where_a_milestone_is_passed_and_from_that_epoch_alone() -> None:
    table = ScoreTable(SPEC, COUNTS, 10)
    everything, index = toy.make_batch(LABELS), torch.arange(10)
    seen = torch.ones(10, dtype=torch.bool)
    built_from = None
    for epoch, progress in enumerate((0.1, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)):
        observe(table, index, epoch)
        table.merge(progress)
        built_from = epoch if progress in (0.45, 0.9) else built_from
        expected = torch.ones(2, 10) if built_from is None else expected_weights(probability(built_from), seen)
        torch.testing.assert_close(table.weights(everything).double(), expected.double(), rtol=1e-6, atol=1e-6)


def test_a_sample_that_was_not_shown_again_keeps_its_score() -> None:
    table = ScoreTable(SPEC, COUNTS, 10)
    observe(table, torch.arange(9), 0)
    table.merge(0.4)
    again = torch.tensor([0, 3, 8])
    observe(table, again, 1)
    table.merge(0.8)
    scores = probability(0).index_copy(0, again, probability(1)[again])
    everything, expected = toy.make_batch(LABELS), expected_weights(scores, torch.arange(10) < 9)
    torch.testing.assert_close(table.weights(everything).double(), expected, rtol=1e-6, atol=1e-6)


def test_two_milestones_in_one_epoch_build_once() -> None:
    table = ScoreTable(SPEC, COUNTS, 10)
    observe(table, torch.arange(10), 0)
    table.merge(0.9)
    assert table.passed == 2


def test_experts_are_scored_by_the_mean_of_their_logits() -> None:
    experts_BEC = torch.stack([logits(0) + 1, logits(0) * 2, logits(0) * 3], dim=1)
    tables = []
    for values in (experts_BEC, experts_BEC.mean(1)):
        table = ScoreTable(SPEC, COUNTS, 10)
        table.observe(toy.make_output(values), toy.make_batch(LABELS))
        table.merge(0.5)
        tables.append(table)
    torch.testing.assert_close(*(table.relative_EN for table in tables))


def test_a_sample_is_right_that_was_right_once() -> None:
    """Three views of a sample, of which one is taken for its class."""
    table = ScoreTable(SPEC, COUNTS, 10)
    index = torch.zeros(3, dtype=torch.int64)
    table.observe(toy.make_output(toy.f64([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])), toy.make_batch(LABELS[index], index))
    table.merge(0.4)
    assert table.last_right_N.tolist() == [True] + [False] * 9
