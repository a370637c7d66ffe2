"""A small LPA term with its memories, and batches in which classes 0 and 1 share parts, and so do 2 and 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ltcore.batch import Batch, ModelOutput
from ltcore.objective.contrast import ContrastSet, mean_over_valid, supcon
from ltcore.objective.dims import FeatureDims
from ltcore.objective.interface import LossContext
from ltcore.objective.memory.base import Memory
from ltcore.objective.memory.queue import Queue
from ltcore.objective.terms.lpa.term import Lpa
from ltcore.stats import ClassStats

STATS = ClassStats(torch.tensor([9, 5, 4, 2]), ("many", "medium", "medium", "few"))
DIMS = FeatureDims(features=5, projection=4, num_samples=20)


def made(**options: Any) -> tuple[Lpa, dict[str, Memory]]:
    options = {
        "num_attributes": 6,
        "neighbors": 2,
        "queue_size": 7,
        "start": 0.0,
        "threshold": 0.0,  # of four classes none is more alike than by chance
        "shrink": 1.0,
        "embedding": "query",
        **options,
    }
    term = Lpa(Lpa.Config(**options), STATS, DIMS)
    return term, {name: spec.build(STATS, DIMS, 0) for name, spec in term.memories().items()}


def context(memories: dict[str, Memory], progress: float = 0.5) -> LossContext:
    return LossContext(STATS, STATS.log_prior_C("dataset"), progress, memories)


def case(seed: int, num: int = 16, dtype: torch.dtype = torch.float32) -> tuple[ModelOutput, Batch]:
    """Classes 0 and 1 share parts, and so do 2 and 3."""
    gen = torch.Generator().manual_seed(seed)
    query, key = (normalize(torch.randn(num, 4, generator=gen, dtype=dtype), dim=1) for _ in range(2))
    labels = torch.arange(num) % 4
    made_of = torch.tensor([[4, 2, 1, 0, 0], [4, 1, 2, 0, 0], [0, 0, 1, 4, 2], [0, 0, 1, 2, 4]], dtype=dtype)
    parts = torch.multinomial(made_of[labels], 4, replacement=True, generator=gen)  # [num, 4 locations]
    size = 1 + torch.rand(num, 4, 1, generator=gen, dtype=dtype)
    fmap = torch.eye(5, dtype=dtype)[parts] * size + 0.3 * torch.rand(num, 4, 5, generator=gen, dtype=dtype)
    fmap = fmap.transpose(1, 2).reshape(num, 5, 2, 2)
    out = ModelOutput(torch.zeros(num, 4), torch.zeros(num, 5), fmap, query.requires_grad_(), key)
    index = torch.arange(num)
    return out, Batch(torch.zeros(1, num, 3, 1, 1), labels, index, torch.zeros_like(index))


def loader(memories: dict[str, Memory], out: ModelOutput, batch: Batch, progress: float | None = None) -> None:
    """A step, and the end of a virtual epoch where ``progress`` is given."""
    for memory in memories.values():
        memory.observe(out, batch)
        if memory.merge_every_step or progress is not None:
            memory.merge(progress or 0.0)


def plain_supcon(out: ModelOutput, batch: Batch, memories: dict[str, Memory], temperature: float) -> Tensor:
    """The loss without neighbor classes."""
    queue = memories["queue"]
    assert isinstance(queue, Queue)
    contrast = ContrastSet.of(out, batch.labels_B, context(memories), queue)
    same = (batch.labels_B[:, None] == contrast.labels_A).float()
    return mean_over_valid(*supcon(contrast.cosine_BA, same, contrast.excluded_BA, temperature))
