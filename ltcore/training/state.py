"""Everything that makes a resumed run equal to an undisturbed one, as plain tensors and numbers.

There is no generator state in it: all randomness is keyed by (seed, epoch, index, copy), so the counters are the state.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ltcore import dist
from ltcore.training.build import Parts
from ltcore.training.progress import Progress


def state_dict(parts: Parts, optimizer: torch.optim.Optimizer, at: Progress) -> dict[str, Any]:
    """Collective. Complete on rank 0, which writes it; what memories have pending is empty on the others."""
    memories = parts.step.objective.memories()
    return {
        "step": parts.step.state_dict(),
        "key": parts.step.key.net.state_dict() if parts.step.key else None,
        "average": parts.average.net.state_dict() if parts.average else None,
        "optimizer": optimizer.state_dict(),
        "memories": {
            name: {"published": m.published(), "pending": _of_all_ranks(m.pending())} for name, m in memories.items()
        },
        "progress": asdict(at),
    }


def load_state(parts: Parts, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Progress:
    """Restores what ``state_dict`` saved, also by another number of ranks; returns where the run stood."""
    parts.step.load_state_dict(state["step"])
    if parts.step.key:
        parts.step.key.net.load_state_dict(state["key"])
    if parts.average:
        parts.average.net.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    for name, memory in parts.step.objective.memories().items():
        saved = state["memories"][name]
        memory.load(saved["published"], saved["pending"])
    return Progress(**state["progress"])


def _of_all_ranks(pending: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    collected = {name: dist.collect(tensor) for name, tensor in sorted(pending.items())}
    return (
        [{name: parts[r] for name, parts in collected.items()} for r in range(dist.world())] if dist.rank() == 0 else []
    )
