"""What an objective remembers across steps: observe (rank-local) -> merge (exact all-reduce) -> publish.

``observe`` runs after the optimiser step and costs O(batch). ``merge`` runs on every rank at the same fixed points of the
plan (the end of each virtual epoch) and is the only place with collectives, unless ``merge_every_step`` is set.
Losses see published values alone, so nothing they compute depends on the number of ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.stats import ClassStats

if TYPE_CHECKING:
    from ltcore.objective.dims import FeatureDims


@dataclass(frozen=True)
class MemorySpec(ABC):
    """How to build a memory. Two losses that declare an equal spec share one memory."""

    @abstractmethod
    def build(self, stats: ClassStats, dims: FeatureDims, seed: int) -> Memory:
        """The memory, empty, on the CPU. ``seed`` is the run's, for memories that draw anything."""

    @property
    def key(self) -> Hashable:
        """What equal specs have in common."""
        return (type(self).__name__, self)


class Memory(ABC):
    """Tensors owned by the objective: not parameters, not buffers of a wrapped module, saved beside the model."""

    merge_every_step: bool = False

    @abstractmethod
    def observe(self, out: ModelOutput, batch: Batch) -> None:
        """Takes in one rank-local batch. Called under ``torch.no_grad``, after the optimiser step."""

    @abstractmethod
    def merge(self, progress: float) -> None:
        """Combines the pending sums of all ranks, publishes, and clears them. A collective."""

    @abstractmethod
    def published(self) -> dict[str, Tensor]:
        """What losses see; equal on all ranks. The tensors themselves, not copies."""

    @abstractmethod
    def pending(self) -> dict[str, Tensor]:
        """What this rank observed since the last merge. The tensors themselves; same shapes on all ranks."""

    def load(self, published: dict[str, Tensor], pending_of_ranks: list[dict[str, Tensor]]) -> None:
        """Restores a checkpoint, also one that another number of ranks wrote.

        Pending values are sums: with equal world size each rank takes its own back (bitwise resume), otherwise rank 0 takes
        the total, and the others need not know what it consists of. A memory whose pending values are not sums overrides
        ``join_pending``.
        """
        for name, tensor in self.published().items():
            tensor.copy_(published[name])
        if len(pending_of_ranks) == dist.world():
            mine = pending_of_ranks[dist.rank()]
        elif dist.rank() == 0:
            mine = self.join_pending(pending_of_ranks)
        else:
            mine = {name: torch.zeros_like(tensor) for name, tensor in self.pending().items()}
        for name, tensor in self.pending().items():
            tensor.copy_(mine[name])

    def join_pending(self, pending_of_ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One rank's worth of pending values out of those of several ranks."""
        return {name: torch.stack([p[name] for p in pending_of_ranks]).sum(0) for name in self.pending()}

    def to(self, device: torch.device) -> None:
        """Moves every tensor; attributes that hold tensors are found by type."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
