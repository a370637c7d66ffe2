"""The sinks of a run: always ``metrics.jsonl``, and TensorBoard files and a W&B run where configured.

Only rank 0 opens any. Resuming and reporting read the JSON lines; the other sinks are views of them, so a run without
network or account loses nothing.
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
    """Opens the tracker of one run; on ranks other than 0 it keeps nothing.

    ``run_id`` identifies the run permanently: a resumed run passes the same one and continues the same W&B run, so it
    must be unique in the W&B project. ``group`` is the sweep, ``job_type`` the kind of run (run, trial, baseline,
    retrain, sweep), ``config_flat`` the configuration by dotted key, ``resume_step`` the step of the last row that is
    kept.
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
