"""One run on Ray, outside a sweep: a worker group or a task, watched from here."""

from __future__ import annotations

import dataclasses
import secrets
import time
from functools import partial

import ray

from ltcore.config.records import RunRecord
from ltcore.reporting.terminal import Terminal
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.doctor.doctor import check_nodes
from ltcore.runtime.heartbeat import Watchdog, start_heartbeat
from ltcore.runtime.interrupts import saving_first
from ltcore.runtime.placement import Placement
from ltcore.runtime.progress import ProgressDisplay
from ltcore.runtime.ray_task import MOVES, awaited, cancel, result_of, stall_error, submit
from ltcore.runtime.ray_train import told_to_leave
from ltcore.training.run import Job

STALL_S = 900.0
"""Longer than collectives (720 s) and Ray (600 s) wait for a worker: a group that hangs is started again rather than given up."""


def run_single(
    job: Job, name: str, placement: Placement, cluster: Cluster, console: Terminal | None = None
) -> RunRecord | None:
    """Runs the job on the cluster, shown as ``name``. Returns its record, None where it was told to stop."""
    display = ProgressDisplay(console, job.config["train"]["select"])
    check_nodes(cluster, placement, job.run_uri.rpartition("/")[0], job.data_uri, display.console)
    display.say(f"{cluster.describe()}; engine {placement.engine}, {placement.demand.describe()}")
    stall_s = placement.silence_s(STALL_S)
    heartbeat, nonce = f"heartbeat-{name}-{time.time_ns()}", secrets.token_hex(16)
    watch = Watchdog(
        start_heartbeat(heartbeat, nonce),
        display.update,
        stall_s=stall_s,
        deadline_s=None,
        say=display.say,
        waited_for=None if cluster.local else partial(awaited, placement.demand, cluster),
    )
    watch.start()
    scaling = placement.scaling
    job = dataclasses.replace(job, cpus=scaling.cpus_per_worker, gpus=scaling.gpus_per_worker)
    job = dataclasses.replace(job, heartbeat=heartbeat, nonce=nonce, label=name)
    try:
        with display.stage("train", expected=1), saving_first(watch, display.say):
            ref = submit(job, placement.engine, placement.scaling)
            try:
                while True:
                    if ray.wait([ref], timeout=1.0)[0]:
                        record: RunRecord | None = result_of(ref)
                        if record is None or not told_to_leave(record):
                            return record
                        if watch.saving.is_set():
                            return None
                        display.say(f"{name}: {MOVES}")
                        ref = submit(job, placement.engine, placement.scaling)
                    if watch.stalled.is_set():
                        raise stall_error(stall_s, placement.demand)
                    if watch.stop_wanted:
                        cancel([ref])
                        return None
            except BaseException:  # an interrupt too
                if not cluster.local:  # a Ray that goes on after this would go on with the run
                    cancel([ref])
                raise
    finally:
        watch.end()
