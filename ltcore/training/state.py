"""The training state with which a resumed run equals an uninterrupted one, as plain tensors and numbers.

It contains no generator state: all randomness is keyed by (seed, epoch, index, copy), so the counters are the state.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ltcore import dist
from ltcore.errors import CheckpointError
from ltcore.models.norm import assign_, flatten, running_stats
from ltcore.objective.memory.base import Memory
from ltcore.training.build import Components
from ltcore.training.checkpoint import refuse_other_network
from ltcore.training.descent import Descent
from ltcore.training.progress import TrainProgress


def state_dict(components: Components, descent: Descent, at: TrainProgress) -> dict[str, Any]:
    """Returns the complete state on rank 0, which writes it. A collective.

    On other ranks the pending values of memories are missing.
    """
    memories = components.step.objective.memories()
    return {
        "step": components.step.state_dict(),
        "key": components.step.key.net.state_dict() if components.step.key else None,
        "average": components.average.net.state_dict() if components.average else None,
        **descent.state_dict(),
        "running_stats": _collected(_running_stats(components)),
        "memories": {
            name: {"published": m.published(), "pending": _of_all_ranks(m.pending())} for name, m in memories.items()
        },
        "progress": asdict(at),
    }


def load_state(
    components: Components,
    descent: Descent,
    state: dict[str, Any],
    pending: dict[str, list[dict[str, Tensor]]],
) -> TrainProgress:
    """Restores what ``state_dict`` saved, possibly with another number of ranks; returns the progress of the run.

    A collective: ``state`` is the same on all ranks, and rank 0 passes what ``take_pending`` removed from it. Raises
    CheckpointError for the state of another version of this package.
    """
    if "running_stats" not in state:
        raise CheckpointError(
            "The checkpoint to continue from was written by another version of ltcore. Use that version, or start again with "
            "--fresh; evaluate.py and stage 2 can use it."
        )
    refuse_other_network("state.pt of the checkpoint to continue from", state["step"], components.step.state_dict())
    components.step.load_state_dict(state["step"])
    if components.step.key:
        components.step.key.net.load_state_dict(state["key"])
    if components.average:
        components.average.net.load_state_dict(state["average"])
    descent.load_state_dict(state)
    of_ranks = state["running_stats"]
    mine = of_ranks[dist.rank()] if len(of_ranks) == dist.world() else torch.stack(of_ranks).mean(0)
    if stats := _running_stats(components):
        assign_(stats, mine)
    for name, memory in components.step.objective.memories().items():
        memory.load(state["memories"][name]["published"], _own(pending.get(name, []), memory, len(of_ranks)))
    return TrainProgress(**state["progress"])


def take_pending(state: dict[str, Any]) -> dict[str, list[dict[str, Tensor]]]:
    """Removes the memories' pending values of all ranks from ``state`` and returns them by memory.

    They are large, and no rank needs those of the others.
    """
    return {name: memory.pop("pending") for name, memory in state["memories"].items()}


def _own(of_ranks: list[dict[str, Tensor]], memory: Memory, saved_world: int) -> list[dict[str, Tensor]]:
    """Returns what ``Memory.load`` expects on this rank. A collective; ``of_ranks`` is complete on rank 0."""
    if saved_world != dist.world():
        return of_ranks
    mine = {
        name: dist.hand_out([p[name] for p in of_ranks], tensor) for name, tensor in sorted(memory.pending().items())
    }
    return [mine] * saved_world


def _running_stats(components: Components) -> list[Tensor]:
    """Returns the running statistics of the trained networks and of the average.

    They are equal on all ranks only at the end of an epoch.
    """
    return running_stats(components.step) + (running_stats(components.average.net) if components.average else [])


def _collected(stats: list[Tensor]) -> list[Tensor]:
    """Returns the statistics of every rank as one vector each, on rank 0; empty ones of a network without batch norm."""
    return dist.collect(flatten(stats)) if stats else [torch.zeros(0)] * dist.world()


def _of_all_ranks(pending: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    collected = {name: dist.collect(tensor) for name, tensor in sorted(pending.items())}
    return (
        [{name: parts[r] for name, parts in collected.items()} for r in range(dist.world())] if dist.rank() == 0 else []
    )
