"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainProgress:
    """Saved with every checkpoint."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    """Metrics of the epoch with the best ``train.select``, with its ``epoch``."""
    last: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last whole epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the loss parts over the steps of the unfinished epoch, each the mean over ranks."""
    counts: dict[str, int] = field(default_factory=dict)
    """In how many of these steps each part was there."""
    schedule: list[dict[str, Any]] = field(default_factory=list)
    """Values of the hot keys, each with the ``images_seen`` from which they held."""
    started_from: dict[str, Any] = field(default_factory=dict)
    """The checkpoint or file whose weights the run started with, where ``train.init_from`` names one."""
