"""Metrics of attributes inside classes against values computed by hand, and over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltcore.evaluation.attributes import UNRANKED, AttributeRanks, CellCounts, attribute_metrics
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.pairs import AttributeCounts, Ints, Pairs
from tests.ddp import run_ranks

MAJORITY, SECOND, RARE = range(3)
TRAINED_CA = np.array([[7, 2, 1], [1, 5, 5], [0, 3, 0]])
LABELS, ATTRIBUTES, PREDICTIONS = (
    # class 0: 2 of 2, 1 of 2, 0 of 1; class 1: rare 0 of 1, majority 1 of 2, second 1 of 1; class 2: majority 1 of 1
    [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2],
    [0, 0, 1, 1, 2, 0, 1, 1, 2, 1, -1],
    [0, 0, 0, 1, 2, 0, 1, 2, 1, 2, 0],
)
GROUPS = ("many", "medium", "few")


def ranks_of(trained: list[list[int]] | Ints) -> Ints:
    """The ranks of all pairs as [C, A]."""
    table_CA = np.array(trained)
    ranks_P = AttributeRanks(AttributeCounts.of_table(table_CA)).of(Pairs.every(*table_CA.shape))
    return ranks_P.reshape(-1, len(table_CA))[:-1].T


def cells_of(confusion: Confusion, trained: list[list[int]] | Ints) -> CellCounts:
    return CellCounts.of(confusion, AttributeRanks(AttributeCounts.of_table(np.array(trained))).of(confusion.pairs))


def counted(start: int = 0, stop: int | None = None) -> Confusion:
    confusion = Confusion(Pairs.every(3, 3))
    labels, attributes, predictions = (torch.tensor(row[start:stop]) for row in (LABELS, ATTRIBUTES, PREDICTIONS))
    confusion.update(torch.nn.functional.one_hot(predictions, 3).float(), labels, attributes)
    return confusion


def test_ranks_go_by_the_training_images_of_the_class_and_equal_counts_by_id() -> None:
    assert ranks_of(TRAINED_CA).tolist() == [
        [MAJORITY, SECOND, RARE],
        [RARE, MAJORITY, SECOND],
        [RARE, MAJORITY, RARE],  # an attribute without an image is no second
    ]


def test_of_two_attributes_the_other_is_rare_and_a_class_without_any_has_no_ranks() -> None:
    assert ranks_of([[2, 5], [3, 3], [0, 0]]).tolist() == [[RARE, MAJORITY], [MAJORITY, RARE], [UNRANKED, UNRANKED]]


def test_of_two_attributes_that_are_a_class_s_own_the_other_is_rare_too() -> None:
    assert ranks_of([[5, 2, 0, 0], [0, 0, 3, 4]]).tolist() == [
        [MAJORITY, RARE, RARE, RARE],
        [RARE, RARE, RARE, MAJORITY],
    ]
    assert ranks_of([[5, 2, 0, 0, 0], [0, 0, 3, 4, 1]]).tolist() == [
        [MAJORITY, RARE, RARE, RARE, RARE],
        [RARE, RARE, SECOND, MAJORITY, RARE],
    ]


def test_a_class_that_shares_attributes_and_lacks_the_third_in_training_has_a_second_one() -> None:
    assert ranks_of([[5, 2, 1], [3, 1, 0]]).tolist() == [[MAJORITY, SECOND, RARE]] * 2
    one_is_shared = ranks_of([[5, 2, 0, 0, 0], [0, 1, 3, 4, 2]])
    assert one_is_shared[0].tolist() == [MAJORITY, SECOND, RARE, RARE, RARE]
    none_has_all = ranks_of([[0, 2, 1], [20, 0, 5]])
    assert none_has_all.tolist() == [[RARE, MAJORITY, SECOND], [MAJORITY, RARE, SECOND]]


def test_of_two_attributes_that_some_classes_share_the_other_is_rare_also_beside_classes_with_more() -> None:
    two_share_two = ranks_of([[5, 2, 0, 0, 0], [1, 3, 0, 0, 0], [0, 0, 3, 2, 1]])
    assert two_share_two.tolist() == [
        [MAJORITY, RARE, RARE, RARE, RARE],
        [RARE, MAJORITY, RARE, RARE, RARE],
        [RARE, RARE, MAJORITY, SECOND, RARE],
    ]


def test_training_images_are_counted_by_class_and_attribute_without_those_of_unknown_attribute() -> None:
    counts = AttributeCounts.of(np.array([0, 0, 1, 1, 1]), np.array([1, 1, 0, -1, 2]), 2, 3)
    assert counts.table_CA().tolist() == [[0, 2, 0], [1, 0, 1]]


def test_every_metric_by_hand() -> None:
    result = attribute_metrics(cells_of(counted(), TRAINED_CA), GROUPS)
    assert result["attribute_rank/majority"] == pytest.approx((2 / 2 + 1 / 2 + 1 / 1) / 3)
    assert result["attribute_rank/second"] == pytest.approx((1 / 2 + 1 / 1) / 2)  # class 2 has no second attribute
    assert result["attribute_rank/rare"] == 0
    assert result["attribute_rank/majority/medium"] == 0.5
    assert result["attribute_rank/second/few"] is None
    assert result["attribute_gap"] == pytest.approx(((1 - 0) + (1 / 2 - 0)) / 2)  # class 2 has no rare sample
    assert result["worst_group"] == 0
    # of the majority samples, two were taken for class 0, one for 1, two for 2, of which one was right
    assert result["attribute_rank/majority/macro_precision"] == pytest.approx((2 / 2 + 1 / 1 + 1 / 2) / 3)
    assert result["attribute_rank/second/macro_precision"] == pytest.approx((1 / 1 + 1 / 2) / 2)


def test_accuracy_is_the_mean_over_classes_and_not_over_samples() -> None:
    """Class 0 has four majority samples, all right, class 1 one that is wrong."""
    confusion = Confusion(Pairs.every(2, 2))
    confusion.update(torch.eye(2)[[0] * 5], torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 0, 1]))
    cells = cells_of(confusion, [[9, 1], [1, 9]])
    assert attribute_metrics(cells, ("many", "few"))["attribute_rank/majority"] == 0.5


def test_the_worst_group_counts_attributes_without_a_rank_and_not_unknown_ones() -> None:
    unranked = CellCounts.of(counted(), np.full(12, UNRANKED))
    result = attribute_metrics(unranked, GROUPS)
    assert result["worst_group"] == 0
    assert {value for name, value in result.items() if name != "worst_group"} == {None}
    confusion = Confusion(Pairs.every(2, 1))
    confusion.update(torch.eye(2)[[0, 0, 1]], torch.tensor([0, 1, 1]), torch.tensor([0, -1, 0]))
    cells = cells_of(confusion, [[1], [1]])
    assert attribute_metrics(cells, ("many", "few"))["worst_group"] == 1


def _of_rank(bounds: list[int]) -> dict[str, float | None]:
    import torch.distributed as td

    confusion = counted(*bounds[td.get_rank() : td.get_rank() + 2])
    confusion.reduce()
    return attribute_metrics(cells_of(confusion, TRAINED_CA), GROUPS)


def test_two_ranks_compute_the_same_numbers_for_any_split_of_the_samples() -> None:
    alone = attribute_metrics(cells_of(counted(), TRAINED_CA), GROUPS)
    assert run_ranks(_of_rank, 2, [0, 4, len(LABELS)]) == [alone, alone]
