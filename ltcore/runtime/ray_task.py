"""One job as a Ray task: how the driver submits it and takes its result, and what runs on the worker."""

from __future__ import annotations

from typing import Any

import ray
import torch

from ltcore.config.records import RunRecord
from ltcore.errors import LtcoreError, StallError
from ltcore.runtime.cluster import DRIVER_RESOURCE, Cluster, quiet
from ltcore.runtime.heartbeat import adopt_secrets
from ltcore.runtime.placement import Demand, Scaling
from ltcore.runtime.ray_context import ReportingContext
from ltcore.runtime.ray_data import make_ray_loader
from ltcore.runtime.ray_train import fit_with_train
from ltcore.training.context import StopRequested
from ltcore.training.run import Job, execute


class TaskContext(ReportingContext):
    """A Ray task: nobody decides about it, the driver only listens."""

    engine = "trial"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@ray.remote
def preload() -> None:
    """Does nothing, but unpickling it imports this module.

    So the process, which Ray keeps, starts its first run at once.
    """


@ray.remote(max_retries=2)
def run_job(fields: dict[str, Any], engine: str, scaling: Scaling) -> RunRecord | None:
    """Runs one job as a Ray task: in this process, or as the driver of a Ray Train run.

    Returns None where it was told to stop.
    """
    quiet()
    job = Job.from_json(fields, "the job")
    adopt_secrets(job.heartbeat, job.nonce)
    if engine == "train":
        return fit_with_train(job, scaling, storage=None, callbacks=[])
    try:
        return execute(job, TaskContext(job), make_ray_loader)
    except StopRequested:
        return None  # what it came to lies in its directory


def submit(job: Job, engine: str, scaling: Scaling, cluster: Cluster) -> Any:
    """Starts the job on the cluster and returns the reference of its result."""
    options: dict[str, Any] = {"num_cpus": scaling.cpus_per_worker, "num_gpus": scaling.gpus_per_worker}
    if engine == "train":  # the task only drives; its workers reserve what they need
        options = {"num_cpus": 0, "num_gpus": 0}
        if cluster.holds_drivers:
            options["resources"] = {DRIVER_RESOURCE: 0.01}
    return run_job.options(**options).remote(job.to_json(), engine, scaling)


def result_of(ref: Any) -> Any:
    """Returns the value of a finished task. An ``LtcoreError`` raised in it is raised here as itself."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LtcoreError):
            raise error.cause from None
        raise LtcoreError(f"A run failed: {error.cause!r}") from error
    except ray.exceptions.RayError as error:
        raise LtcoreError(
            f"A run was lost with its process or node ({type(error).__name__}), several times. The same command continues it."
        ) from error


def stall_error(seconds: float, need: Demand, cluster: Cluster) -> StallError:
    """Returns the error of a driver that heard nothing for ``seconds``.

    It says what a run needs and what is free.
    """
    free = ray.available_resources()
    return StallError(
        f"Nothing happened for {seconds:g} s. One run needs {need.describe()}; of {cluster.cpus:g} CPUs and "
        f"{cluster.gpus:g} GPUs, {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free now. "
        "Everything was canceled; the same command continues."
    )
