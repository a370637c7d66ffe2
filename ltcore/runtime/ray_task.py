"""The worker side: contexts that let ``fit`` report to Ray, and the functions that Ray runs."""

from __future__ import annotations

from typing import Any

import ray
import torch

from ltcore.config.records import RunRecord
from ltcore.runtime.cluster import quiet
from ltcore.runtime.heartbeat import adopt_secrets
from ltcore.runtime.placement import Scaling
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
    """Does nothing; unpickling it imported this module, so the process, which Ray keeps, starts its first run at once."""


@ray.remote(max_retries=2)
def run_job(fields: dict[str, Any], engine: str, scaling: Scaling) -> RunRecord | None:
    """One job as a Ray task: in this process, or as the driver of a Ray Train run. None where it was told to stop."""
    quiet()
    job = Job.from_json(fields, "the job")
    adopt_secrets(job.heartbeat, job.nonce)
    if engine == "train":
        return fit_with_train(job, scaling, storage=None, callbacks=[])
    try:
        return execute(job, TaskContext(job), make_ray_loader)
    except StopRequested:
        return None  # what it came to lies in its directory
