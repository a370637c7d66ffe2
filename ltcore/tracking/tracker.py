"""Where a run's numbers go: always ``metrics.jsonl``; TensorBoard files and a W&B run beside it where asked for.

Only rank 0 opens anything. The JSON lines are the record that resuming and reporting read; the other sinks are views of
it, so a run without network or account loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltcore.tracking.base import FanOut, Tracker
from ltcore.tracking.config import TrackingConfig
from ltcore.tracking.jsonl_sink import JsonlTracker


def open_tracker(
    *,
    run_dir: Path,
    run_id: str,
    group: str,
    name: str,
    config_flat: Mapping[str, Any],
    options: TrackingConfig,
    rank: int = 0,
    resume_step: int = 0,
    job_type: str = "run",
) -> Tracker:
    """The tracker of one run.

    ``run_id`` names the run for good: a resumed run passes the same one and continues the same W&B run, so it must be
    unique in the W&B project. ``group`` is the sweep, ``job_type`` the kind of run (run, trial, baseline, retrain,
    sweep), ``config_flat`` the configuration by dotted key, ``resume_step`` the step of the last row that stays.
    """
    if rank != 0:
        return Tracker()
    sinks: list[Tracker] = [JsonlTracker(run_dir, resume_step)]
    if options.tensorboard:
        from ltcore.tracking.tensorboard_sink import TensorBoardSink

        sinks.append(TensorBoardSink(run_dir / "tensorboard", resume_step))
    if options.wandb and options.wandb_mode != "disabled":
        from ltcore.tracking.wandb_sink import open_wandb

        sinks += open_wandb(
            run_dir=run_dir,
            run_id=run_id,
            group=group,
            name=name,
            job_type=job_type,
            config_flat=config_flat,
            options=options,
        )
    return FanOut(sinks)
