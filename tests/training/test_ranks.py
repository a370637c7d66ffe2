"""One process against two gloo ranks on the same global batches, in float64: losses, gradients, parameters, memories."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltcore.config.load import dump
from tests.ddp import run_ranks
from tests.training.runs import TERMS, double_steps, tiny_run

STEPS = 24


@pytest.mark.parametrize("terms", [{}, TERMS], ids=["base", "all-terms"])
def test_two_ranks_compute_what_one_computes(tiny_shards: str, terms: dict[str, Any]) -> None:
    tree = dump(tiny_run(model__ghost_batch=4, **terms))
    (one,) = run_ranks(double_steps, 1, tree, tiny_shards, STEPS)
    two = run_ranks(double_steps, 2, tree, tiny_shards, STEPS)
    for rank in two:
        for section in ("gradients", "state", "memories"):
            assert set(rank[section]) == set(one[section])
            for name, value in one[section].items():
                torch.testing.assert_close(rank[section][name].double(), value.double(), rtol=1e-9, atol=1e-9, msg=name)
        torch.testing.assert_close(rank["losses"], one["losses"], rtol=1e-9, atol=1e-9)
    if terms:
        assert len(one["memories"]) > 4
