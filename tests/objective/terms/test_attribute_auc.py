"""How well weights find minority attributes: values by hand, ties, unknown attributes, and what the term tells."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ltcore import dist
from ltcore.objective.objective import make_objective
from ltcore.objective.terms.ifl.attribute_auc import attribute_auc
from ltcore.objective.terms.ifl.scores import ScoreTable
from tests.ddp import run_ranks
from tests.objective import toy


def naive(weight: Tensor, label: Tensor, attribute: Tensor) -> float:
    """Every pair of every class."""
    of_classes = []
    for c in label.unique().tolist():
        mine = [(float(weight[i]), int(attribute[i])) for i in range(len(label)) if label[i] == c and attribute[i] >= 0]
        numbers = [a for _, a in mine]
        if not numbers:
            continue
        majority = min(set(numbers), key=lambda a: (-numbers.count(a), a))
        rare, common = ([w for w, a in mine if (a != majority) == minor] for minor in (True, False))
        wins = [(r > m) + (r == m) / 2 for r, m in itertools.product(rare, common)]
        of_classes += [sum(wins) / len(wins)] if wins else []
    return sum(of_classes) / len(of_classes)


def test_value_by_hand() -> None:
    """Class 0: minorities 3 and 1 against 2, 2, 0: 3 + 1 of 6. Class 1: 1 against 1, a tie. Class 2 has one attribute."""
    weight = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0, 1.0, 1.0, 5.0, 7.0])
    label = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
    attribute = torch.tensor([1, 2, 0, 0, 0, 4, 3, 1, 1])  # class 1: equally many, so 3 is the majority
    assert attribute_auc(weight, label, attribute) == pytest.approx((4 / 6 + 0.5) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_matches_every_pair_in_any_order(seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    label, attribute = (torch.randint(low, high, (80,), generator=gen) for low, high in ((0, 5), (-1, 4)))
    weight = torch.randint(0, 6, (80,), generator=gen).float()  # many ties
    expected = naive(weight, label, attribute)
    assert attribute_auc(weight, label, attribute) == pytest.approx(expected)
    order = torch.randperm(80, generator=gen)
    assert attribute_auc(weight[order], label[order], attribute[order]) == pytest.approx(expected)
    assert attribute_auc(10 + 3 * weight, label, attribute) == pytest.approx(expected)


def test_without_both_kinds_there_is_no_value() -> None:
    labels, weight = torch.tensor([0, 0, 1]), torch.ones(3)
    assert attribute_auc(weight, labels, torch.tensor([2, 2, 0])) is None
    assert attribute_auc(weight, labels, torch.full((3,), -1)) is None
    assert attribute_auc(weight[:0], labels[:0], labels[:0]) is None


def test_the_term_tells_once_there_are_environments_and_nothing_without() -> None:
    """Badly predicted samples of a class are those of attribute 1, which then outweigh all others."""
    labels, attributes = torch.arange(2).repeat_interleave(10), (torch.arange(20) % 10 >= 7).long()
    options = {"start": 0.5, "milestones": (0.7,)}
    objective = make_objective("cross_entropy", {"ifl": options}, class_counts=[10, 10], features=3)
    right = torch.linspace(2, 4, 20)
    right[attributes == 1] -= 4
    logits = torch.zeros(20, 2).scatter_(1, labels[:, None], right[:, None])
    for progress in (0.3, 0.5):
        assert objective.findings(labels, attributes) == {}
        objective.observe(toy.make_output(logits, torch.zeros(20, 3)), toy.make_batch(labels), progress)
        objective.merge(progress)
    table = objective.memories()["ScoreTable"]
    assert isinstance(table, ScoreTable)
    before = {name: tensor.clone() for name, tensor in table.published().items()}
    assert objective.findings(labels, attributes) == {"ifl/attribute_auc": 1.0}
    assert (
        objective.findings(labels, 1 - attributes)["ifl/attribute_auc"] == 1.0
    )  # the frequent one, whatever its number
    assert objective.findings(labels, attributes.flip(0))["ifl/attribute_auc"] < 0.6
    assert all(torch.equal(before[name], tensor) for name, tensor in table.published().items())
    single = make_objective("cross_entropy", {"ifl": {"num_envs": 1}}, class_counts=[10, 10], features=3)
    single.observe(toy.make_output(logits, torch.zeros(20, 3)), toy.make_batch(labels), 0.9)
    single.merge(0.9)
    assert single.findings(labels, attributes) == {}


def _share_of_ranks() -> float:
    gen = torch.Generator().manual_seed(0)
    labels, attributes = torch.arange(40) % 4, torch.randint(0, 3, (40,), generator=gen)
    logits = torch.randn(40, 4, generator=gen, dtype=torch.float64)
    objective = make_objective(
        "cross_entropy", {"ifl": {"center_weight": 0.0}}, class_counts=[10, 10, 10, 10], features=1
    )
    mine = slice(dist.rank(), None, dist.world())
    objective.observe(toy.make_output(logits[mine]), toy.make_batch(labels[mine], torch.arange(40)[mine]), 0.6)
    objective.merge(0.6)
    return objective.findings(labels, attributes)["ifl/attribute_auc"]


def test_every_rank_finds_what_one_finds() -> None:
    alone = _share_of_ranks()
    assert 0 < alone < 1 and alone != 0.5
    assert run_ranks(_share_of_ranks, 2) == [alone, alone]
