"""What every method of stage 2 must keep: it knows no order of the batch, no numbering of the classes, and stays finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ltcore.contracts import stage2
from ltcore.objective.registry import STAGE2
from ltcore.objective.stage2.method import Trained

ROWS = [row for name in STAGE2 for row in stage2.rows_of(name)]
LEARNED = [row for row in ROWS if issubclass(STAGE2[row[0]].build, Trained)]


@pytest.mark.parametrize("contract", stage2.CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_stage_2(row: tuple[str, str], contract: Callable[[tuple[str, str]], None]) -> None:
    contract(row)


@pytest.mark.parametrize(("name", "kind"), LEARNED)
def test_one_sample_and_absent_classes_give_a_loss_and_a_gradient(name: str, kind: str) -> None:
    method = stage2.build(name, kind)
    loss = method(stage2.features()[:1], stage2.LABELS_N[:1])
    loss.backward()
    assert bool(loss.isfinite()) and loss.dtype in (torch.float32, torch.float64)
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "kind"), LEARNED)
def test_the_gradient_is_that_of_the_loss(name: str, kind: str) -> None:
    method = stage2.build(name, kind).double()
    learned = [p for p in method.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: method(stage2.features().double(), stage2.LABELS_N), learned)
