"""What the contexts of Ray's workers have in common: each epoch is told to the driver and to Ray's metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import ray
import torch

from ltcore.config.records import Notice, RunRecord
from ltcore.retry import listeners
from ltcore.runtime.heartbeat import HeartbeatSender
from ltcore.runtime.leaving import leaving_nodes
from ltcore.runtime.metrics import RayMetrics
from ltcore.runtime.ray_data import make_ray_loader
from ltcore.training.context import Interrupted
from ltcore.training.run import Job, execute

ASK_S = 2.0
"""Seconds between questions whether a node is taken away; clouds say it 30 to 120 s before."""
UNTOLD_S = 120.0
"""Time that a node has left where the notice does not say."""
TAKEN_S = 120.0
"""How long after its time a node may still be there; then the notice came to nothing."""


class ReportingContext:
    """Base of a worker's context: nobody above takes checkpoints inside an epoch; the driver may ask for a stop. A subclass
    says where it runs, with ``engine`` and ``device``."""

    engine: str
    device: torch.device
    checkpoint_every_epoch = False

    def __init__(self, job: Job, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._sender = HeartbeatSender(job.heartbeat if rank == 0 else "", job.label)
        listeners["heartbeat"] = self._sender.alive
        self._metrics = RayMetrics(job.info.group or job.info.id, job.label, rank)
        self._may_be_taken = may_be_taken()
        self._asked = time.monotonic()
        self.taken_at_s = 0.0
        """Unix time at which the node goes, by the notice that was heeded."""

    def over(self) -> None:
        """Says that this process is through with the run."""
        self._sender.over()

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        self._sender.epoch(metrics)
        self._metrics.epoch(metrics)

    def saved(self) -> None:
        """Does nothing: nobody above takes checkpoints inside an epoch."""

    def stop_requested(self) -> bool:
        return self._sender.stop_requested()

    def notice_due(self) -> bool:
        return self._may_be_taken and time.monotonic() - self._asked > ASK_S

    def notice(self) -> Notice | None:
        """Asks Ray whether the node of this process is about to be taken away; each time that is said counts once."""
        self._asked = time.monotonic()
        deadline_ms = leaving_nodes().get(ray.get_runtime_context().get_node_id())
        if deadline_ms is None:
            return None
        before, self.taken_at_s = self.taken_at_s, deadline_ms / 1000 or self.taken_at_s or time.time() + UNTOLD_S
        return None if self.taken_at_s == before else "preemption"

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        self._sender.beat(epoch, images_seen, total_images)


def may_be_taken() -> bool:
    """Tells whether nodes may be taken away: nobody drains that of a private Ray, which ends with its driver."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"


def execute_on_node(job: Job, ctx: ReportingContext) -> RunRecord:
    """Executes a trial's job in this process, until it ends or the node is taken away.

    Ray Tune starts a trial that is lost with a preempted node again elsewhere, and does not count it as a failure; one
    that ended by itself it would count. So after its last checkpoint the process waits for the end of its node, and goes
    on if that does not come, until it is announced for another time.
    """
    while True:
        try:
            return execute(job, ctx, make_ray_loader)
        except Interrupted:
            time.sleep(max(0.0, ctx.taken_at_s + TAKEN_S - time.time()))
