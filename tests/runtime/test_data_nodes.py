"""How the CPUs that decode are dealt out to workers."""

from __future__ import annotations

from collections import Counter

import pytest

from ltcore.runtime.data_nodes import NodeCpus, dealt


@pytest.mark.parametrize("world", [1, 2, 3, 5, 64])
def test_every_free_cpu_is_dealt_to_one_worker(world: int) -> None:
    nodes = [NodeCpus("a", 8, 3.0), NodeCpus("b", 4), NodeCpus("c", 2, 2.0), NodeCpus("d", 16, 0.5)]
    shares = [dealt(nodes, rank, world) for rank in range(world)]
    summed = sum((Counter(share) for share in shares), Counter[str]())
    assert summed == {"a": 5, "b": 4, "d": 15}
    sizes = [sum(share.values()) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert shares == [dealt(nodes[::-1], rank, world) for rank in range(world)], (
        "the order of the nodes is of no account"
    )


def test_cpus_of_workers_of_all_runs_are_not_counted() -> None:
    """Two workers of 4 CPUs each and another run of 6 leave 2 of 16: 1 for each worker."""
    assert [dealt([NodeCpus("a", 16, 14.0)], rank, 2) for rank in range(2)] == [{"a": 1}] * 2
    assert dealt([NodeCpus("a", 4, 4.0)], 0, 1) == {}
