"""Ray Train: one run on several workers. The run directory, not Ray's, is the checkpoint store, so a run may continue
under another engine, number of workers or Ray version."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ltcore.config.records import Notice, RunRecord
from ltcore.errors import DataError, LtcoreError, RunFailedError, is_retryable
from ltcore.lease import exclusive
from ltcore.retry import PATIENCE_S, patience_s
from ltcore.runtime.freed_room import freed_room
from ltcore.runtime.placement import BACKEND, Scaling
from ltcore.runtime.ray_context import ASK_S, ReportingContext
from ltcore.runtime.worker import begin
from ltcore.storage import is_local, join, open_fs
from ltcore.training.context import StopRequested
from ltcore.training.record import failed_start
from ltcore.training.run import Job, execute

SPOT_FAILURES = 10
"""How often a run may lose workers on a cluster, whose nodes come and go; each time it goes on from its last checkpoint."""
BEYOND_PATIENCE_S = 120.0
"""How much longer ranks wait for each other in a collective than one of them may wait for its storage."""


def fit_with_train(job: Job, scaling: Scaling, storage: str | None, callbacks: list[Any]) -> RunRecord:
    """Runs the job with a ``TorchTrainer`` and returns the record that rank 0 wrote."""
    with freed_room():
        return _fit(job, scaling, storage, callbacks)


def _fit(job: Job, scaling: Scaling, storage: str | None, callbacks: list[Any]) -> RunRecord:
    import ray.exceptions
    import ray.train

    lost = 0
    while True:
        before = RunRecord.read(job.run_uri)
        try:
            _trainer(job, scaling, storage, callbacks).fit()
        except ray.train.TrainingFailedError as error:
            cause = _cause(error)
            if not is_retryable(cause):
                _note(job, cause, before)
            raise cause from error
        except ray.exceptions.RayActorError as error:
            lost += 1  # Ray starts workers again, but not the process that watches over them
            if lost > most_failures(job):
                raise LtcoreError(
                    f"The process that watches over the workers was lost {lost} times ({error}). The same command continues."
                ) from error
            continue
        record = RunRecord.read(job.run_uri)
        if record is None:
            raise LtcoreError(
                f"{job.run_uri}/run.json is missing although the workers ended: is the storage shared by all nodes?"
            )
        if record.status == "failed":
            raise RunFailedError(record.reason, record.retryable is not False)
        if not told_to_leave(record):
            return record


def most_failures(job: Job) -> int:
    """Returns how often processes of a run may be lost in one command: more often where machines may be taken back."""
    return 3 if is_local(job.run_uri) else SPOT_FAILURES


def told_to_leave(record: RunRecord) -> bool:
    """Tells whether the workers ended because others take over.

    They return instead of failing, which Ray would count and, after a notice, delay until the node is gone.
    """
    return record.status == "running" and bool(record.starts and record.starts[-1].notice)


def _trainer(job: Job, scaling: Scaling, storage: str | None, callbacks: list[Any]) -> Any:
    """Returns the trainer that starts the job, or continues it, with as many workers as there is room for now."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig

    from ltcore.runtime.final_errors import EndAtFinalError
    from ltcore.runtime.resize import SaveBeforeResize, WaitForRoom

    root = storage or job.run_uri
    place_of_ray = join(root, "ray_train" if is_local(root) else ".ray_train")
    filesystem, place = open_fs(place_of_ray)
    per_worker: dict[str, float] = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        per_worker["GPU"] = scaling.gpus_per_worker
    elastic = scaling.max_workers > scaling.workers
    callbacks = [*callbacks, EndAtFinalError(), *([SaveBeforeResize(), WaitForRoom()] if elastic else [])]
    workers: Any = (scaling.workers, scaling.max_workers) if elastic else scaling.workers
    settings = replace(job, cpus=scaling.cpus_per_worker, nonce="")  # Ray shows settings on its dashboard

    def worker(config: dict[str, Any]) -> None:
        train_worker(replace(Job.from_json(config, "the job"), nonce=job.nonce))

    return TorchTrainer(
        worker,
        train_loop_config=settings.to_json(),
        torch_config=TorchConfig(
            backend=os.environ.get(BACKEND), timeout_s=round(max(PATIENCE_S, patience_s()) + BEYOND_PATIENCE_S)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=scaling.gpus_per_worker > 0, resources_per_worker=per_worker
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{job.info.id}",
            storage_path=place,
            storage_filesystem=filesystem,
            callbacks=callbacks,
            failure_config=FailureConfig(
                max_failures=most_failures(job),
                max_preemption_failures=-1,  # a node that goes without being waited for; a heeded notice is no failure at all
                controller_failure_limit=-1,  # each time that a worker group finds no room counts as one
            ),
        ),
    )


def has_validation(metrics: Mapping[str, Any]) -> bool:
    """Tells whether an epoch was validated.

    Only then does it tell a scheduler anything, and schedulers refuse reports that lack their metric.
    """
    return any(key.startswith("val/") for key in metrics)


def _cause(error: Any) -> Exception:
    """Returns the first worker's own exception where it is one of ours; it says more than the frame around it."""
    failures = [getattr(error, "controller_failure", error), *getattr(error, "worker_failures", {}).values()]
    for failure in failures:
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, LtcoreError):
            return inner
    return LtcoreError(f"Ray Train failed: {error}")


def _note(job: Job, cause: Exception, before: RunRecord | None) -> None:
    """Writes into the run's record that it failed for good, where this start made one; ``before`` is that of an earlier start.

    Rank 0 could not where another rank met the error: it was waiting for that one, and was ended. Where the place cannot be
    had, nothing is written: the error is what counts.
    """
    with contextlib.suppress(DataError), exclusive(job.run_uri):
        record = RunRecord.read(job.run_uri)
        if record is None or record.status not in ("running", "failed"):
            return
        if before is None or record.started_at != before.started_at:
            reason = f"{type(cause).__name__}: {cause}"
            replace(record, status="failed", reason=reason, retryable=False).write(job.run_uri)


def train_worker(job: Job) -> None:
    """Runs the job in a Ray Train worker; every worker runs this."""
    from ltcore.runtime.ray_data import make_ray_loader

    begin(job.heartbeat, job.nonce)
    context = _TrainContext(job)
    before = None
    try:
        before = failed_start(job.run_uri) if context.world == 1 else None
        execute(job, context, make_ray_loader)
    except StopRequested:
        return  # where it was told to; the record says so
    except LtcoreError:
        # Ray Train would start the workers again, only to meet the same error. Alone, the worker has said it in run.json; in
        # a group the others wait for this one, and only the error ends them, see EndAtFinalError.
        if context.world > 1 or failed_start(job.run_uri) in (None, before):
            raise
    finally:
        context.over()


class _TrainContext(ReportingContext):
    """A Ray Train worker."""

    engine = "train"

    def __init__(self, job: Job) -> None:
        import ray.train
        from ray.train.torch import get_device

        context = ray.train.get_context()
        super().__init__(job, context.get_world_rank(), context.get_world_size())
        # Asked for gloo, a worker makes do with the CPU; otherwise a GPU that was reserved and is not there is an error.
        in_name_only = os.environ.get(BACKEND) == "gloo" and not torch.cuda.is_available()
        self.device = torch.device("cpu") if in_name_only else get_device()

    def notice_due(self) -> bool:
        """Tells whether to ask. Also on a private Ray, whose node nobody takes away: an elastic group is resized there too."""
        return time.monotonic() - self._asked > ASK_S

    def notice(self) -> Notice | None:
        """Asks Ray Train, which asks for all nodes of the group and tells every rank the same."""
        import ray.train

        self._asked = time.monotonic()
        info = ray.train.get_preemption_info()
        if info is None:
            return None
        return "preemption" if info.preempted_node_to_ranks else "resize"

    def report(self, metrics: Mapping[str, float | int | None], checkpoint: Path | None) -> None:
        # Metrics alone go on to Tune. The checkpoint already lies in the run directory, on the same storage.
        super().report(metrics, checkpoint)
        if has_validation(metrics):
            import ray.train

            ray.train.report({key: value for key, value in metrics.items() if value is not None})
