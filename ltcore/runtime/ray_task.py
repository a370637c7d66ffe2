"""One job as a Ray task: how the driver submits it and takes its result, and what runs on the worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray
import torch

from ltcore.config.records import RunRecord
from ltcore.errors import LtcoreError, RunFailedError, StallError, is_retryable
from ltcore.runtime.cluster import ON_HEAD, Cluster, nodes_are_coming
from ltcore.runtime.placement import Demand, Scaling
from ltcore.runtime.ray_context import ReportingContext, may_be_taken
from ltcore.runtime.ray_data import make_ray_loader
from ltcore.runtime.ray_train import fit_with_train, most_failures
from ltcore.runtime.worker import begin
from ltcore.text import counted
from ltcore.training.context import Interrupted, StopRequested
from ltcore.training.run import Job, execute

MOVES = "its node is taken away, so it goes on elsewhere"


class TaskContext(ReportingContext):
    """A Ray task: nobody decides about it, the driver only listens."""

    engine = "trial"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        # Ray hides no GPU from a process that was given none
        self.device = torch.device("cuda" if job.gpus and torch.cuda.is_available() else "cpu")


@ray.remote
def preload() -> None:
    """Does nothing, but unpickling it imports this module.

    So the process, which Ray keeps, starts its first run at once.
    """


def _run(fields: dict[str, Any], engine: str, scaling: Scaling) -> RunRecord | None:
    """Runs one job as a Ray task: in this process, or as the driver of a Ray Train run.

    Returns None where it was told to stop, and where its node is taken away the record that says so, see ``told_to_leave``:
    whoever submitted it does so again. A task that is lost with its node costs one of its retries unless Ray's head hears of
    the node before the driver does.
    """
    job = Job.from_json(fields, "the job")
    begin(job.heartbeat, job.nonce)
    if engine == "train":
        return fit_with_train(job, scaling, storage=None, callbacks=[])
    context = TaskContext(job)
    try:
        return execute(job, context, make_ray_loader)
    except Interrupted as left:
        return left.record
    except StopRequested:
        return None  # what it came to lies in its directory
    finally:
        context.over()


run_job: Any = ray.remote(_run)
run_job_alone: Any = ray.remote(max_calls=1)(_run)
"""The same in a process that ends with it. Another run on its GPU needs the memory, and a process that CUDA has begun in stays
on its GPU, whichever one Ray gives its next task. On a node that is taken away, Ray would give a process that waits the next
run in line."""


def submit(job: Job, engine: str, scaling: Scaling) -> Any:
    """Starts the job on the cluster and returns the reference of its result."""
    options: dict[str, Any] = {"num_cpus": scaling.cpus_per_worker, "num_gpus": scaling.gpus_per_worker}
    options["max_retries"] = most_failures(job)
    if engine == "train":  # the task only drives; its workers reserve what they need
        options |= {"num_cpus": 0, "num_gpus": 0, "resources": ON_HEAD}
    alone = engine != "train" and (options["num_gpus"] or may_be_taken())
    return (run_job_alone if alone else run_job).options(**options).remote(job.to_json(), engine, scaling)


def result_of(ref: Any, what: str = "run") -> Any:
    """Returns the value of a finished task, ``what`` for people. An ``LtcoreError`` in it is raised here as itself."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LtcoreError):
            raise error.cause from None
        raise RunFailedError(f"A {what} failed: {error.cause!r}", is_retryable(error)) from error
    except ray.exceptions.RayError as error:
        raise LtcoreError(
            f"A {what} was lost with its process or node ({type(error).__name__}), several times. The same command continues it."
        ) from error


def cancel(refs: Iterable[Any]) -> None:
    """Cancels the tasks that have not ended, with their processes.

    Canceling one that has just ended makes Ray's core abort this process, sooner or later (Ray 2.60, a failed check in
    ``task_manager.cc``). What ends in the same moment stays a risk, so on a local Ray that ends next nothing is canceled.
    """
    refs = list(refs)
    for ref in ray.wait(refs, num_returns=len(refs), timeout=0)[1] if refs else ():
        ray.cancel(ref, force=True)


def stall_error(seconds: float, need: Demand) -> StallError:
    """Returns the error of a driver that heard nothing for ``seconds`` on a machine where nobody else decides.

    It says what a run needs and what is free.
    """
    return StallError(
        f"Nothing happened for {seconds:g} s: {lacking(need)}. Everything was canceled; the same command continues."
    )


def awaited(need: Demand, cluster: Cluster) -> str:
    """Returns what runs that have not begun on a cluster wait for, in words."""
    return lacking(need) + (", and nodes are being started" if nodes_are_coming(cluster) else "")


def lacking(need: Demand, what: str = "run") -> str:
    """Returns what a run, or ``what`` else, needs and what of it is free, in words."""
    there, free = ray.cluster_resources(), ray.available_resources()
    return (
        f"{need.describe()} for one {what}; {free.get('CPU', 0):g} of {counted(there.get('CPU', 0), 'CPU')} and "
        f"{free.get('GPU', 0):g} of {counted(there.get('GPU', 0), 'GPU')} are free"
    )
