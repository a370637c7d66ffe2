"""What the contexts of Ray's workers have in common: each epoch is told to the driver and to Ray's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ltcore.runtime.heartbeat import HeartbeatSender
from ltcore.runtime.metrics import RayMetrics
from ltcore.training.run import Job


class ReportingContext:
    """Base of a worker's context: nobody above takes checkpoints inside an epoch, or asks for a stop. A subclass says where
    it runs, with ``engine`` and ``device``."""

    checkpoint_every_epoch = False

    def __init__(self, job: Job, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._sender = HeartbeatSender(job.heartbeat if rank == 0 else "", job.label)
        self._metrics = RayMetrics(job.info.group or job.info.id, job.label, rank)

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        self._sender.epoch(metrics)
        self._metrics.epoch(metrics)

    def saved(self) -> None:
        """Does nothing: nobody above takes checkpoints inside an epoch."""

    def stop_requested(self) -> bool:
        return False

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        self._sender.beat(epoch, images_seen, total_images)
