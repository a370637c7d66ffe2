"""One process against two gloo ranks on the same global batches: losses, gradients, parameters, statistics, memories."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ddp import run_ranks
from tests.training.runs import TERMS, plain_steps, tiny_run

STEPS = {torch.float64: 200, torch.float32: 5}
FEW = 12
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
    trees = {
        name: tiny_run(model__ghost_batch=4, train__optim__lr=LR, **terms).to_dict()
        for name, terms in (OBJECTIVES | OTHER_STEPS).items()
    }
    return {(name, dtype): plain_steps(trees[name], uri, steps_of(name, dtype), dtype) for name, dtype in CASES}


def steps_of(name: str, dtype: torch.dtype) -> int:
    return FEW if name in OTHER_STEPS else STEPS[dtype]


@pytest.fixture(scope="module")
def one_and_two(tiny_shards: str) -> tuple[Results, list[Results]]:
    return all_cases(tiny_shards), run_ranks(all_cases, 2, tiny_shards)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in CASES])
def test_two_ranks_compute_what_one_computes(
    one_and_two: tuple[Results, list[Results]], name: str, dtype: torch.dtype
) -> None:
    one, ranks = one_and_two[0][name, dtype], one_and_two[1]
    near = {"rtol": WITHIN[dtype], "atol": WITHIN[dtype]}
    for rank in ranks:
        two = rank[name, dtype]
        for section in ("gradients", "state", "memories"):
            assert set(two[section]) == set(one[section])
            for key, value in one[section].items():
                torch.testing.assert_close(two[section][key].double(), value.double(), **near, msg=f"{section} {key}")
        torch.testing.assert_close(two["losses"], one["losses"], **near)
        assert len(two["losses"]) == steps_of(name, dtype)
    if name == "all-terms":
        assert len(one["memories"]) > 4
