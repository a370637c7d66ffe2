"""The key queue against a plain list."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.objective.dims import FeatureDims
from ltcore.objective.memory.queue import Queue, QueueSpec
from ltcore.stats import ClassStats
from tests.ddp import run_ranks


def push(queue: Queue, keys_Bd: Tensor, labels_B: Tensor) -> None:
    num = len(labels_B)
    out = ModelOutput(torch.zeros(num, 2), torch.zeros(num, 2), key_Bd=keys_Bd)
    queue.observe(out, Batch(torch.zeros(1, num, 3, 1, 1), labels_B, labels_B, labels_B))
    queue.merge(0.0)


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("batches", [[3, 3, 3, 3], [8, 5, 1], [13, 2, 20], [1] * 11])
def test_holds_the_last_keys(size: int, batches: list[int]) -> None:
    queue, seen = Queue(size, 2), []
    assert not queue.valid_Q.any()
    step = 0
    for num in batches:
        values = torch.arange(step, step + num, dtype=torch.float32)
        step += num
        push(queue, torch.stack([values, -values], 1), values.long())
        seen += values.tolist()
        held = queue.keys_Qd[queue.valid_Q]
        assert sorted(held[:, 0].tolist()) == seen[-size:]
        assert held[:, 1].tolist() == [-v for v in held[:, 0].tolist()]
        assert queue.labels_Q[queue.valid_Q].tolist() == held[:, 0].tolist()
        assert int(queue.count) == min(size, len(seen))
        oldest = (int(queue.pointer) - int(queue.count)) % size
        assert queue.keys_Qd.roll(-oldest, 0)[: int(queue.count), 0].tolist() == seen[-size:]
    assert queue.labels_Q[~queue.valid_Q].eq(-1).all()


def test_merge_without_a_step_changes_nothing_and_resume_is_exact() -> None:
    queue, other = Queue(4, 2), Queue(4, 2)
    push(queue, torch.ones(3, 2), torch.tensor([1, 2, 3]))
    before = {name: tensor.clone() for name, tensor in queue.published().items()}
    queue.merge(0.5)
    other.load(before, [{}])
    assert queue.pending() == other.pending() == {}
    for memory in (queue, other):
        push(memory, torch.zeros(2, 2), torch.tensor([4, 5]))
    for name, tensor in queue.published().items():
        assert torch.equal(tensor, other.published()[name])
    assert queue.labels_Q.tolist() == [5, 2, 3, 4]


def test_equal_specs_are_one_memory_of_projection_length() -> None:
    assert QueueSpec(16).key == QueueSpec(16).key != QueueSpec(17).key
    stats = ClassStats(torch.tensor([1]), ("few",))
    queue = QueueSpec(16).build(stats, FeatureDims(features=8, projection=4, num_samples=1), seed=0)
    assert queue.keys_Qd.shape == (16, 4) and queue.merge_every_step


def _rank_fills(size: int) -> dict[str, Tensor]:
    queue, gen = Queue(size, 2), torch.Generator().manual_seed(0)
    for _ in range(3):
        keys, labels = torch.randn(6, 2, generator=gen), torch.randint(0, 9, (6,), generator=gen)
        mine = slice(dist.rank() * 6 // dist.world(), (dist.rank() + 1) * 6 // dist.world())
        push(queue, keys[mine], labels[mine])
    return queue.published()


def test_two_ranks_hold_what_one_holds() -> None:
    alone = _rank_fills(7)
    for rank in run_ranks(_rank_fills, 2, 7):
        for name, tensor in alone.items():
            assert torch.equal(rank[name], tensor), name
