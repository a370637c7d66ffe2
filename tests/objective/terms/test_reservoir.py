"""The keyed reservoir of LPA: which vectors it keeps, and how it takes them in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltcore.objective.terms.lpa import reservoir as reservoir_module
from ltcore.objective.terms.lpa.reservoir import KeyedReservoir, join
from tests.objective.toy import assert_same, copies


def rows(num: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    keys = torch.randperm(num, generator=gen) + 1
    groups = torch.randint(0, 3, (num,), generator=gen)
    return keys, groups, groups, torch.randn(num, 2, generator=gen)


@pytest.mark.parametrize("loose_rows", [1, 7, 1000])
def test_reservoir_keeps_the_largest_keys_per_group(loose_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservoir_module, "LOOSE_ROWS", loose_rows)
    keys, groups, labels, vectors = rows(40)
    keys[::9] = 0  # never to be kept
    kept = KeyedReservoir(groups=4, slots=5, dim=2)
    for part in torch.arange(40).split(6):
        kept.add(keys[part], groups[part], labels[part], vectors[part])
    state = kept.state()
    expected = []
    for group in range(4):
        mine = sorted((int(k), r) for r, k in enumerate(keys) if groups[r] == group and k > 0)[::-1][:5]
        assert state["reservoir_keys"][group].tolist() == [k for k, _ in mine] + [0] * (5 - len(mine))
        for slot, (_, row) in enumerate(mine):
            assert torch.equal(state["reservoir_vectors"][group, slot], vectors[row])
        assert not state["reservoir_vectors"][group, len(mine) :].any()
        expected += mine
    gathered, gathered_labels = kept.gather()
    order = [row for _, row in sorted(expected)[::-1]]
    assert torch.equal(gathered, vectors[order]) and torch.equal(gathered_labels, labels[order])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("loose_rows", [1, 9, 1000])
def test_reservoir_in_place_equals_sorting_everything(
    groups: int, loose_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit and with equal keys, which stay in the order of their coming, whenever the state is looked at."""
    monkeypatch.setattr(reservoir_module, "LOOSE_ROWS", loose_rows)
    monkeypatch.setattr(reservoir_module, "ORDER_ROWS", 10)
    gen = torch.Generator().manual_seed(groups)
    kept = KeyedReservoir(groups, slots=6, dim=3)
    seen: list[tuple[int, int, int, Tensor]] = []
    for turn in range(30):
        keys = torch.randint(0, 60, (7,), generator=gen)  # 0 is never to be kept
        in_group = torch.randint(0, groups, (7,), generator=gen)
        labels, vectors = torch.randint(0, 9, (7,), generator=gen), torch.randn(7, 3, generator=gen)
        kept.add(keys, in_group, labels, vectors)
        seen += list(zip(keys.tolist(), in_group.tolist(), labels.tolist(), vectors, strict=True))
        if turn % 4 == 3:
            state = copies(kept.state())
            for group in range(groups):
                best = sorted((row for row in seen if row[1] == group and row[0]), key=lambda row: -row[0])[:6]
                assert state["reservoir_keys"][group].tolist() == [k for k, *_ in best] + [0] * (6 - len(best))
                assert state["reservoir_labels"][group].tolist() == [row[2] for row in best] + [0] * (6 - len(best))
                for slot, row in enumerate(best):
                    assert torch.equal(state["reservoir_vectors"][group, slot], row[3])
                assert not state["reservoir_vectors"][group, len(best) :].any()
        if turn % 10 == 9:
            kept.clear()
            seen.clear()
            assert not any(tensor.any() for tensor in kept.state().values())


def test_reservoir_writes_the_vectors_that_enter_and_no_others() -> None:
    kept = KeyedReservoir(groups=50, slots=20, dim=4)
    gen = torch.Generator().manual_seed(0)
    groups = torch.arange(50).repeat_interleave(20)
    kept.add(torch.randint(10, 10**6, (1000,), generator=gen), groups, groups, torch.randn(1000, 4, generator=gen))
    state = kept.state()
    address, before = state["reservoir_vectors"].data_ptr(), kept._vectors_MD.clone()
    kept.add(torch.tensor([2 * 10**6, 1, 0]), torch.tensor([7, 8, 9]), torch.tensor([7, 8, 9]), torch.zeros(3, 4))
    kept._take_in()
    changed = (kept._vectors_MD != before).any(1).nonzero().flatten().tolist()
    assert changed == [7 * 20 + 19], "where the smallest key of group 7 had been; 1 is too small and 0 is no key"
    assert kept.state()["reservoir_vectors"].data_ptr() == address
    assert not kept.state()["reservoir_vectors"][7, 0].any() and kept.state()["reservoir_keys"][7, 0] == 2 * 10**6


def test_joined_reservoirs_are_the_reservoir_of_all() -> None:
    whole, parts = KeyedReservoir(3, 4, 2), [KeyedReservoir(3, 4, 2) for _ in range(3)]
    columns = rows(30)
    whole.add(*columns)
    for i, part in enumerate(parts):
        part.add(*(column[i::3] for column in columns))
    assert_same(join([part.state() for part in parts]), whole.state())
