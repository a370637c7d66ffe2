"""Memories: state of an objective across steps, by observe (rank-local) -> merge (exact all-reduce) -> publish.

``observe`` runs after the optimizer step and costs O(batch). ``merge`` runs on every rank at the same fixed points (the
end of each virtual epoch) and is the only place with collectives, unless ``merge_every_step`` is set. Losses read
published values only, so nothing they compute depends on the number of ranks.
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
    """A description of a memory and how to build it. Two losses that declare equal specs share one memory."""

    @abstractmethod
    def build(self, stats: ClassStats, dims: FeatureDims, seed: int) -> Memory:
        """Returns the empty memory, on the CPU. ``seed`` is that of the run, for memories that draw random numbers."""

    @property
    def key(self) -> Hashable:
        """Returns a key that is the same for equal specs."""
        return (type(self).__name__, self)


class Memory(ABC):
    """Tensors owned by the objective: neither parameters nor module buffers, saved in checkpoints beside the model."""

    merge_every_step: bool = False

    @abstractmethod
    def observe(self, out: ModelOutput, batch: Batch) -> None:
        """Takes in one rank-local batch. Called under ``torch.no_grad``, after the optimizer step."""

    @abstractmethod
    def merge(self, progress: float) -> None:
        """Combines the pending sums of all ranks, publishes, and clears them. A collective."""

    @abstractmethod
    def published(self) -> dict[str, Tensor]:
        """Returns the values that losses read, equal on all ranks. The tensors themselves, not copies.

        ``merge`` fills them in place: a step that replays CUDA graphs is recorded anew for every tensor that takes the place
        of another.
        """

    @abstractmethod
    def pending(self) -> dict[str, Tensor]:
        """Returns what this rank observed since the last merge. The tensors themselves; same shapes on all ranks."""

    def load(self, published: dict[str, Tensor], pending_of_ranks: list[dict[str, Tensor]]) -> None:
        """Restores a checkpoint, including one written by a different number of ranks.

        Pending values are sums. With an equal world size each rank takes its own back (bitwise resume); otherwise rank
        0 takes the total, and the other ranks need not know what it consists of. A memory whose pending values are not
        sums overrides ``join_pending``.
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
        """Combines the pending values of several ranks into those of one."""
        return {name: torch.stack([p[name] for p in pending_of_ranks]).sum(0) for name in self.pending()}

    def to(self, device: torch.device) -> None:
        """Moves every attribute that is a tensor to the device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
