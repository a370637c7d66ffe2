"""Classes that share parts, by numbers that can be checked by hand."""

from __future__ import annotations

import pytest
import torch

from ltcore.training.class_parts import class_parts
from tests.objective.terms.prototypes_case import SPEC

MASS_CK = torch.tensor([[6, 3, 1], [5, 2, 3], [1, 2, 7]])
"""Class descriptions (.6, .3, .1), (.5, .2, .3), (.1, .2, .7); centered (.2, .0667, -.2667), (.1, -.0333, -.0667), ..."""
IMAGES_C = torch.tensor([10, 10, 10])


def test_the_most_similar_classes_and_what_they_share() -> None:
    (pair,) = class_parts(MASS_CK, IMAGES_C, SPEC, ("many", "medium", "few")).pairs
    assert (pair.first, pair.second) == (0, 1)
    assert pair.similarity == pytest.approx(0.838628, abs=1e-6)
    (part,) = pair.parts
    assert part.prototype == 0, "both lack prototype 2, and one of them prototype 1"
    assert part.share == pytest.approx(0.2 * 0.1 / (0.2 * 0.1 + 0.8 / 3 * 0.2 / 3))


def test_few_shot_classes_are_compared_with_many_shot_classes_alone() -> None:
    mass_CK = torch.cat([MASS_CK, torch.tensor([[60, 30, 11]])])
    found = class_parts(mass_CK, torch.tensor([10, 10, 10, 100]), SPEC, ("few", "medium", "many", "many"))
    assert [(pair.first, pair.second) for pair in found.borrowed] == [(0, 3)], "above 0, and not the medium class"
    assert class_parts(mass_CK, torch.ones(4), SPEC, ("few", "medium", "few", "few")).borrowed == ()


def test_a_pair_is_listed_once_and_beyond_chance_where_either_class_stands_out() -> None:
    gen = torch.Generator().manual_seed(0)
    mass_CK = torch.randint(0, 20, (40, 30), generator=gen)
    mass_CK[7] = mass_CK[31]
    pairs = class_parts(mass_CK, torch.full((40,), 10), SPEC, ("many",) * 40).pairs
    assert len({(pair.first, pair.second) for pair in pairs}) == len(pairs)
    assert all(pair.first < pair.second for pair in pairs)
    first = pairs[0]
    assert (first.first, first.second, first.beyond_chance) == (7, 31, True)
    assert first.similarity == pytest.approx(1.0)
    assert any(not pair.beyond_chance for pair in pairs), "all others are alike by chance alone"


def test_classes_without_images_have_no_relatives() -> None:
    mass_CK = torch.cat([MASS_CK, torch.zeros(1, 3, dtype=torch.int64)])
    pairs = class_parts(mass_CK, torch.tensor([10, 10, 10, 0]), SPEC, ("many",) * 4).pairs
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1)]
