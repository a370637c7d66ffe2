"""One process against two gloo ranks on the same global batches, in float64: losses, gradients, parameters, memories."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltcore.config.load import dump
from tests.ddp import run_ranks
from tests.training.runs import TERMS, double_steps, tiny_run

STEPS = 24
OBJECTIVES: dict[str, dict[str, Any]] = {"base": {}, "all-terms": TERMS}
Results = dict[str, dict[str, Any]]


def trees() -> dict[str, dict[str, Any]]:
    return {name: dump(tiny_run(model__ghost_batch=4, **terms)) for name, terms in OBJECTIVES.items()}


def all_objectives(uri: str) -> Results:
    return {name: double_steps(tree, uri, STEPS) for name, tree in trees().items()}


@pytest.fixture(scope="module")
def two_ranks(tiny_shards: str) -> list[Results]:
    return run_ranks(all_objectives, 2, tiny_shards)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_two_ranks_compute_what_one_computes(tiny_shards: str, two_ranks: list[Results], name: str) -> None:
    one = double_steps(trees()[name], tiny_shards, STEPS)
    for rank in two_ranks:
        two = rank[name]
        for section in ("gradients", "state", "memories"):
            assert set(two[section]) == set(one[section])
            for key, value in one[section].items():
                torch.testing.assert_close(two[section][key].double(), value.double(), rtol=1e-9, atol=1e-9, msg=key)
        torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-9, atol=1e-9)
    if name == "all-terms":
        assert len(one["memories"]) > 4
