"""Queue of keys: the last ``size`` keys of the global batch stream, in rank order, equal on every rank.

Source: MoCo's queue as PaCo uses it.
Differs: unfilled slots are masked by a count instead of holding random vectors with random labels (which act as
positives in the first steps), and positions are modular, so the batch size need not divide the length.
Shapes: Q slots, d projection (or D pooled features).
Cost: one gather of [B, d] per step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.objective.dims import FeatureDims
from ltcore.objective.embedding import QUERY, key_of, length
from ltcore.objective.memory.base import Memory, MemorySpec
from ltcore.stats import ClassStats


@dataclass(frozen=True)
class QueueSpec(MemorySpec):
    """A queue of ``size`` keys. Losses that ask for the same size and space share one queue."""

    size: int
    space: str = QUERY
    """Space of the stored unit vectors, which are those of the last view; see ``ltcore.objective.embedding``."""

    def build(self, stats: ClassStats, dims: FeatureDims, seed: int) -> Queue:
        """Returns an empty queue for keys of the space's vector length."""
        return Queue(self.size, length(dims, self.space), self.space)


class Queue(Memory):
    """``keys_Qd`` (unit rows) and ``labels_Q``, of which the slots in ``valid_Q`` are filled."""

    merge_every_step = True

    def __init__(self, size: int, dim: int, space: str = QUERY) -> None:
        self.space = space
        self.keys_Qd = torch.zeros(size, dim)
        self.labels_Q = torch.full((size,), -1, dtype=torch.int64)
        self.count = torch.zeros((), dtype=torch.int64)
        """Slots filled so far, at most Q."""
        self.pointer = torch.zeros((), dtype=torch.int64)
        """Slot of the next key."""
        self._incoming: tuple[Tensor, Tensor] | None = None

    @property
    def valid_Q(self) -> Tensor:
        """Returns bool [Q], True for filled slots."""
        return torch.arange(len(self.labels_Q), device=self.labels_Q.device) < self.count

    def observe(self, out: ModelOutput, batch: Batch) -> None:
        """Keeps the step's keys [B, d] until ``merge``."""
        self._incoming = (key_of(out, self.space).detach().to(self.keys_Qd.dtype), batch.labels_B)

    def merge(self, progress: float) -> None:
        """Overwrites the oldest keys by those of all ranks. A collective."""
        if self._incoming is None:
            return
        keys_nd, labels_n = (dist.gather(tensor) for tensor in self._incoming)
        size, seen = len(self.labels_Q), len(labels_n)
        kept = min(size, seen)
        slots = (self.pointer + torch.arange(seen - kept, seen, device=self.pointer.device)) % size
        self.keys_Qd[slots] = keys_nd[seen - kept :]
        self.labels_Q[slots] = labels_n[seen - kept :]
        self.count.add_(seen).clamp_(max=size)
        self.pointer.add_(seen).remainder_(size)
        self._incoming = None

    def published(self) -> dict[str, Tensor]:
        return {"keys": self.keys_Qd, "labels": self.labels_Q, "count": self.count, "pointer": self.pointer}

    def pending(self) -> dict[str, Tensor]:
        """Returns nothing, since the keys of a step are merged within the step."""
        return {}
