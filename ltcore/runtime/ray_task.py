"""The worker side: contexts that let ``fit`` report to Ray, and the functions that Ray runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from ltcore.runtime.cluster import quiet
from ltcore.runtime.heartbeat import HeartbeatSender, adopt_secrets
from ltcore.runtime.metrics import RayMetrics
from ltcore.runtime.placement import Scaling
from ltcore.runtime.ray_data import make_ray_loader
from ltcore.runtime.ray_train import fit_with_train
from ltcore.training.context import StopRequested
from ltcore.training.run import Job, execute


class TaskContext:
    """A Ray task: nobody decides about it, the driver only listens."""

    engine = "trial"
    rank = 0
    world = 1
    checkpoint_every_epoch = False

    def __init__(self, job: Job) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._sender = HeartbeatSender(job.heartbeat, job.label)
        self._observer = RayMetrics(job.info["group"] or job.info["id"], job.label, self.rank)

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        self._sender.epoch(metrics)
        self._observer.epoch(metrics)

    def saved(self) -> None:
        """Nobody above takes checkpoints inside an epoch."""

    def stop_requested(self) -> bool:
        return False

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        self._sender.beat(epoch, images_seen, total_images)


@ray.remote
def preload() -> None:
    """Does nothing; unpickling it imported this module, so the process, which Ray keeps, starts its first run at once."""


@ray.remote(max_retries=2)
def run_job(job: dict[str, Any], engine: str, scaling: dict[str, Any]) -> dict[str, Any]:
    """One job as a Ray task: in this process, or as the driver of a Ray Train run."""
    quiet()
    adopt_secrets(job["heartbeat"], job["nonce"])
    if engine == "train":
        return fit_with_train(Job(**job), Scaling(**scaling), storage=None, callbacks=[])
    try:
        return execute(Job(**job), TaskContext(Job(**job)), make_ray_loader)
    except StopRequested:
        return {}  # as told; what it came to lies in its directory
