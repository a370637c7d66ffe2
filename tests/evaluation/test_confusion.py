"""Confusion counts against a loop, and over ranks."""

from __future__ import annotations

import pytest
import torch

from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.pairs import Pairs
from tests.ddp import run_ranks

CLASSES, ATTRIBUTES, SAMPLES = 5, 3, 97


def _predictions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(3)
    logits_BC = torch.randn(SAMPLES, CLASSES, generator=gen)
    labels_B = torch.randint(CLASSES, (SAMPLES,), generator=gen)
    attributes_B = torch.randint(-1, ATTRIBUTES, (SAMPLES,), generator=gen)
    return logits_BC, labels_B, attributes_B


def _naive() -> list[list[list[int]]]:
    logits_BC, labels_B, attributes_B = _predictions()
    counts = [[[0] * CLASSES for _ in range(CLASSES)] for _ in range(ATTRIBUTES + 1)]
    for logits, label, attribute in zip(logits_BC.tolist(), labels_B.tolist(), attributes_B.tolist(), strict=True):
        slot = ATTRIBUTES if attribute == -1 else attribute
        counts[slot][label][logits.index(max(logits))] += 1
    return counts


def _counts_of_rank(bounds: list[list[int]]) -> list[torch.Tensor]:
    import torch.distributed as td

    logits_BC, labels_B, attributes_B = _predictions()
    confusion = Confusion(Pairs.every(CLASSES, ATTRIBUTES))
    for start, stop in bounds[td.get_rank()]:
        confusion.update(logits_BC[start:stop], labels_B[start:stop], attributes_B[start:stop])
    return [confusion.reduce(), confusion.top_C, confusion.bins_CK3]


@pytest.mark.parametrize("batch", [1, 10, SAMPLES])
def test_counts_equal_a_loop_for_any_batching(batch: int) -> None:
    confusion = Confusion(Pairs.every(CLASSES, ATTRIBUTES))
    for parts in zip(*(t.split(batch) for t in _predictions()), strict=True):
        confusion.update(*parts)
    assert confusion.reduce().view(-1, CLASSES, CLASSES).tolist() == _naive()
    assert confusion.total == SAMPLES


def test_two_ranks_give_the_same_integers_for_any_split() -> None:
    uneven = [[[0, 20], [20, 21]], [[21, SAMPLES]]]
    alone = Confusion(Pairs.every(CLASSES, ATTRIBUTES))
    alone.update(*_predictions())
    for counts_PC, top_C, bins_CK3 in run_ranks(_counts_of_rank, 2, uneven):
        assert counts_PC.dtype == top_C.dtype == bins_CK3.dtype == torch.int64
        assert counts_PC.view(-1, CLASSES, CLASSES).tolist() == _naive()
        assert torch.equal(top_C, alone.top_C) and torch.equal(bins_CK3, alone.bins_CK3)


def test_without_attributes_everything_is_unknown() -> None:
    confusion = Confusion(Pairs.every(2, 0))
    confusion.update(torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([1, 0]))
    assert confusion.counts_PC.tolist() == [[1, 0], [1, 0]]  # a tie goes to the lower class


@pytest.mark.parametrize(("label", "attribute"), [(2, 0), (0, 2)])
def test_what_is_outside_the_table_is_refused(label: int, attribute: int) -> None:
    with pytest.raises(IndexError):
        Confusion(Pairs.every(2, 1)).update(torch.zeros(1, 2), torch.tensor([label]), torch.tensor([attribute]))
