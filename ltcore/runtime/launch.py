"""One run on Ray, outside a sweep: capacity first, then a worker group or a task, watched from here."""

from __future__ import annotations

import dataclasses
import secrets
import time
from functools import partial
from typing import Any

import ray

from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.errors import StallError
from ltcore.runtime.cluster import DRIVER_RESOURCE, Cluster, nodes_are_coming
from ltcore.runtime.doctor.doctor import check_nodes
from ltcore.runtime.heartbeat import Watchdog, start_heartbeat
from ltcore.runtime.placement import Scaling, demand
from ltcore.runtime.progress import ProgressDisplay
from ltcore.runtime.ray_task import run_job
from ltcore.runtime.results import result_of
from ltcore.training.run import Job

STALL_S = 900.0
"""Longer than collectives and Ray wait for a worker (600 s): a group that hangs is started again rather than given up."""


def run_single(
    job: Job, cfg: RunConfig, engine: str, scaling: Scaling, cluster: Cluster, max_gpus: float | None
) -> RunRecord | None:
    """Runs the job on the cluster. Returns its record, None where it was told to stop."""
    need = demand(scaling, engine, streams=cfg.data.loader == "ray")
    display = ProgressDisplay()
    check_nodes(cluster, job.run_uri.rpartition("/")[0], job.data_uri, need, max_gpus, display.console)
    display.say(f"{cluster.describe()}; engine {engine}, {need.describe()}")
    name, nonce = f"heartbeat-{cfg.name}-{time.time_ns()}", secrets.token_hex(16)
    watch = Watchdog(
        start_heartbeat(name, nonce),
        display.update,
        stall_s=STALL_S,
        deadline_s=None,
        nodes_are_coming=partial(nodes_are_coming, cluster),
    )
    watch.start()
    job = dataclasses.replace(job, heartbeat=name, nonce=nonce, label=cfg.name, cpus=scaling.cpus_per_worker)
    inside = engine == "trial"
    options: dict[str, Any] = {
        "num_cpus": scaling.cpus_per_worker if inside else 0,
        "num_gpus": scaling.gpus_per_worker if inside else 0,
    }
    if cluster.holds_drivers and not inside:
        options["resources"] = {DRIVER_RESOURCE: 0.01}
    try:
        with display.stage("train", expected=1):
            ref = run_job.options(**options).remote(job.to_json(), engine, scaling)
            while not ray.wait([ref], timeout=1.0)[0]:
                if watch.stalled.is_set():
                    ray.cancel(ref, force=True)
                    raise StallError(
                        f"Nothing happened for {STALL_S:g} s. The run needs {need.describe()}; the cluster has "
                        f"{cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs. It was canceled; the same command continues."
                    )
            record: RunRecord | None = result_of(ref)
            return record
    finally:
        watch.end()
