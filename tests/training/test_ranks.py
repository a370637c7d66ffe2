"""One process against two gloo ranks on the same global batches: losses, gradients, parameters, statistics, memories."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ddp import run_ranks
from tests.training.runs import TERMS, plain_steps, tiny_run

STEPS = {torch.float64: 40, torch.float32: 5}
MANY, FEW = 200, 12
LR = 0.002
"""Training amplifies rounding: at 0.05 a difference of 1e-16 doubles every seven steps of this tiny data set and has
reached 1e-9 by step 140; here it stays below 1e-13 for all 200. In float32 five steps are compared for the same reason."""
WITHIN = {torch.float64: 1e-9, torch.float32: 1e-5}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "base": {},
    "all-terms": TERMS,
    "sampled": {"train.sampling": "progressive", "train.epochs": 40, "objective.base": "balanced_softmax"},
    "mixed": {"augment.mixup_alpha": 1.0, "augment.cutmix_alpha": 1.0, "augment.remix_kappa": 2.0},
}
OTHER_STEPS: dict[str, dict[str, Any]] = {
    "twin": {"objective.base": "lff"},
    "tde": {"model.head": "tde"},
    "pairs": {"objective.base": "bbn", "model.bilateral": True},
    "both-views": {"objective.base": "gpaco", "objective.base_options.gpaco.queue_size": 16},
}
"""Methods whose step is another one: a few steps in float64 show it."""
CASES = [(name, dtype) for name in OBJECTIVES for dtype in STEPS] + [(name, torch.float64) for name in OTHER_STEPS]
Results = dict[tuple[str, torch.dtype], dict[str, Any]]


def all_cases(uri: str) -> Results:
    return {(name, dtype): steps(uri, name, steps_of(name, dtype), dtype) for name, dtype in CASES}


def many_steps(uri: str) -> Results:
    return {(name, torch.float64): steps(uri, name, MANY, torch.float64) for name in OBJECTIVES}


def steps(uri: str, name: str, count: int, dtype: torch.dtype) -> dict[str, Any]:
    terms = (OBJECTIVES | OTHER_STEPS)[name]
    return plain_steps(tiny_run(model__ghost_batch=4, train__optim__lr=LR, **terms).to_dict(), uri, count, dtype)


def steps_of(name: str, dtype: torch.dtype) -> int:
    return FEW if name in OTHER_STEPS else STEPS[dtype]


@pytest.fixture(scope="module")
def one_and_two(tiny_shards: str) -> tuple[Results, list[Results]]:
    return all_cases(tiny_shards), run_ranks(all_cases, 2, tiny_shards)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in CASES])
def test_two_ranks_compute_what_one_computes(
    one_and_two: tuple[Results, list[Results]], name: str, dtype: torch.dtype
) -> None:
    one, ranks = one_and_two
    assert_same(one[name, dtype], [rank[name, dtype] for rank in ranks], dtype, steps_of(name, dtype))
    if name == "all-terms":
        assert len(one[name, dtype]["memories"]) > 4


@pytest.mark.slow
def test_they_do_so_for_many_steps(tiny_shards: str) -> None:
    one, ranks = many_steps(tiny_shards), run_ranks(many_steps, 2, tiny_shards)
    for (name, dtype), results in one.items():
        assert_same(results, [rank[name, dtype] for rank in ranks], dtype, MANY)


def assert_same(one: dict[str, Any], ranks: list[dict[str, Any]], dtype: torch.dtype, count: int) -> None:
    near = {"rtol": WITHIN[dtype], "atol": WITHIN[dtype]}
    for two in ranks:
        for section in ("gradients", "state", "memories"):
            assert set(two[section]) == set(one[section])
            for key, value in one[section].items():
                torch.testing.assert_close(two[section][key].double(), value.double(), **near, msg=f"{section} {key}")
        torch.testing.assert_close(two["losses"], one["losses"], **near)
        assert len(two["losses"]) == count
