"""The configuration of the sinks of a run."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.errors import one_of


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run is logged besides ``metrics.jsonl`` and ``run.json``, which are always written."""

    wandb: bool = True
    """Log to Weights & Biases."""
    wandb_mode: str = "auto"
    """'online' (without W&B no run starts), 'offline' (files that ``wandb sync`` uploads), 'disabled', or 'auto':
    WANDB_DISABLED or WANDB_MODE where it is set, else online where a key is found and taken, else offline. No effect
    with wandb=false."""
    project: str = "ltcore"
    """Name of the W&B project. No effect with wandb=false."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run directory."""

    def __post_init__(self) -> None:
        one_of(("auto", "online", "offline", "disabled"), wandb_mode=self.wandb_mode)
        if not self.project:
            raise ValueError("project must not be empty")
