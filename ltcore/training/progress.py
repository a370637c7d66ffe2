"""The progress of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainProgress:
    """Counters and metrics that are saved with every checkpoint."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    """Metrics of the epoch with the best ``train.select``, with its ``epoch``."""
    last: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last complete epoch."""
    peak: float | None = None
    """Value of ``train.select`` by which patience judges: that of the last evaluation that was better by ``train.min_delta``."""
    peak_epoch: int = 0
    """Epoch of that evaluation."""
    in_vain: int = 0
    """Evaluations since then."""
    stopped: str = ""
    """Why a callback ended the run after the last complete epoch; '' where none did."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the loss parts over the steps of the unfinished epoch, each the mean over ranks."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of these steps in which each part occurred."""
    skipped_steps: int = 0
    """Steps of the unfinished epoch that were left out because a gradient in float16 overflowed."""
    schedule: list[dict[str, Any]] = field(default_factory=list)
    """Values of the mutable keys, each with the ``images_seen`` from which on they were used."""
    started_from: dict[str, Any] = field(default_factory=dict)
    """The checkpoint or file with the initial weights, where there is one."""

    def judge(self, value: float, min_delta: float) -> None:
        """Counts an evaluation of the present epoch for patience."""
        if self.peak is None or value > self.peak + min_delta:
            self.peak, self.peak_epoch, self.in_vain = value, self.epoch, 0
        else:
            self.in_vain += 1
