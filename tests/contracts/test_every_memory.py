"""What every memory promises, for each one that a row of the registry declares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ltcore.contracts import harness
from ltcore.objective.memory.base import Memory

BUILT = {row: harness.build_row(*row) for row in reversed(harness.ROWS)}
DECLARED = {
    spec: (row, name)
    for row, objective in BUILT.items()
    for spec, name in zip(objective._memories, objective.memories(), strict=True)
}
"""The first row of those that share a memory, for they see the same of it."""


def assert_same(a: Memory, b: Memory, tolerance: float = 0.0) -> None:
    for left, right in zip(harness.copies(a), harness.copies(b), strict=True):
        assert left.keys() == right.keys()
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance)


@pytest.fixture(params=sorted(DECLARED.values()), ids=lambda declared: f"{'-'.join(declared[0])}-{declared[1]}")
def declared(request: pytest.FixtureRequest) -> tuple[tuple[str, str], str]:
    return request.param


def test_published_and_pending_have_own_names_and_no_gradient(declared: tuple[tuple[str, str], str]) -> None:
    memory = harness.partly_filled(declared[0]).memories()[declared[1]]
    published, pending = memory.published(), memory.pending()
    assert published
    assert not published.keys() & pending.keys()
    assert not any(tensor.requires_grad for tensor in (published | pending).values())


def test_observing_publishes_nothing(declared: tuple[tuple[str, str], str]) -> None:
    objective = harness.fill(harness.build_row(*declared[0]))
    memory = objective.memories()[declared[1]]
    before, _ = harness.copies(memory)
    index_B = torch.arange(12)
    memory.observe(harness.output_of(objective, index_B), harness.batch_of(index_B))
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.published().items())


def test_merges_fill_the_published_tensors_in_place(declared: tuple[tuple[str, str], str]) -> None:
    """Otherwise a step that replays CUDA graphs would record new ones in every epoch."""
    objective = harness.build_row(*declared[0])
    memory = objective.memories()[declared[1]]
    places = {name: tensor.data_ptr() for name, tensor in memory.published().items()}
    before, _ = harness.copies(memory)
    harness.fill(objective, merges=(0.5, 0.85, 0.95))
    published = memory.published()
    assert {name: tensor.data_ptr() for name, tensor in published.items()} == places
    assert any(not torch.equal(tensor, before[name]) for name, tensor in published.items()), "the merges published"


def test_a_merge_clears_what_was_pending(declared: tuple[tuple[str, str], str]) -> None:
    objective = harness.partly_filled(declared[0])
    objective.merge(0.9)
    used = harness.build_row(*declared[0]).memories()[declared[1]]
    for name, tensor in objective.memories()[declared[1]].pending().items():
        assert torch.equal(tensor, used.pending()[name]), name


def test_equal_specs_share_one_memory() -> None:
    objective = harness.build("balanced_softmax", dro=harness.term_config("dro"), ifl=harness.term_config("ifl"))
    assert list(objective.memories()).count("ClassCentroids") == 1
    assert objective._named["dro"]["centroids"] is objective._named["ifl"]["centroids"]


def test_round_trip(declared: tuple[tuple[str, str], str]) -> None:
    """Bitwise, into another object, also through further observations and a merge."""
    row, name = declared
    saved = harness.partly_filled(row)
    loaded = harness.build_row(*row)
    for each, memory in loaded.memories().items():
        published, pending = harness.copies(saved.memories()[each])
        memory.load(published, [pending])
    assert_same(loaded.memories()[name], saved.memories()[name])
    for objective in (loaded, saved):
        harness.fill(objective, merges=(0.95,))
    assert_same(loaded.memories()[name], saved.memories()[name])


def test_a_checkpoint_of_two_ranks_loads_into_one(
    declared: tuple[tuple[str, str], str], two_ranks: list[dict[str, Any]]
) -> None:
    """One rank goes on from two ranks' checkpoint as if it had been alone from the beginning."""
    row, name = declared
    exclusive, loaded = harness.partly_filled(row), harness.build_row(*row)
    for each, memory in loaded.memories().items():
        ranks = [rank["partly"]["-".join(row)][each] for rank in two_ranks]
        memory.load(ranks[0][0], [rank[1] for rank in ranks])
    assert_same(loaded.memories()[name], exclusive.memories()[name], 1e-9)
    for objective in (loaded, exclusive):
        harness.fill(objective, merges=(0.95,))
    assert_same(loaded.memories()[name], exclusive.memories()[name], 1e-9)


def test_a_checkpoint_of_one_rank_loads_into_two(
    one_rank_restored: tuple[Any, dict[str, dict[str, Tensor]]], two_ranks: list[dict[str, Any]]
) -> None:
    for rank in two_ranks:
        for name, published in one_rank_restored[1].items():
            for key, tensor in published.items():
                harness.assert_close(rank["restored"][name][key], tensor)
