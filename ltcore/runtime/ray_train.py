"""Ray Train: one run on several workers. The run directory, not Ray's, is the checkpoint store, so a run may continue
under another engine, number of workers or Ray version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ltcore.errors import LtcoreError
from ltcore.runtime.placement import BACKEND, Scaling
from ltcore.training.context import StopRequested
from ltcore.training.record import has_failed
from ltcore.training.run import Job, execute

SPOT_FAILURES = 10
"""How often a run may lose workers on a cluster, whose nodes come and go; each time it goes on from its last checkpoint."""


def fit_with_train(job: Job, scaling: Scaling, storage: str | None, callbacks: list[Any]) -> dict[str, Any]:
    """Runs the job with a ``TorchTrainer`` and returns the record that rank 0 wrote."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig

    from ltcore.storage import is_local, join, open_fs, read_json

    root = storage or job.run_uri
    filesystem, place = open_fs(join(root, "ray_train" if is_local(root) else ".ray_train"))
    per_worker: dict[str, float] = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        per_worker["GPU"] = scaling.gpus_per_worker
    workers: Any = scaling.workers if scaling.max_workers <= scaling.workers else (scaling.workers, scaling.max_workers)
    settings = {**job.plain(), "cpus": scaling.cpus_per_worker}
    nonce = settings.pop("nonce")  # Ray shows settings on its dashboard

    def worker(config: dict[str, Any]) -> None:
        train_worker({**config, "nonce": nonce})

    trainer = TorchTrainer(
        worker,
        train_loop_config=settings,
        torch_config=TorchConfig(backend=os.environ.get(BACKEND), timeout_s=600),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=scaling.gpus_per_worker > 0, resources_per_worker=per_worker
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{job.info['id']}",
            storage_path=place,
            storage_filesystem=filesystem,
            callbacks=callbacks,
            failure_config=FailureConfig(
                max_failures=3 if is_local(job.run_uri) else SPOT_FAILURES, controller_failure_limit=3
            ),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    record = read_json(join(job.run_uri, "run.json"))
    if record is not None and record["status"] == "failed":
        raise LtcoreError(record["reason"])
    if record is None:
        raise LtcoreError(
            f"{job.run_uri}/run.json is missing although the workers ended: is the storage shared by all nodes?"
        )
    return record


def has_validation(metrics: Mapping[str, Any]) -> bool:
    """Whether an epoch was validated: only then does it tell a scheduler anything, and schedulers refuse what does not."""
    return any(key.startswith("val/") for key in metrics)


def _cause(error: Any) -> Exception:
    """The first worker's own exception where it is one of ours; it says more than the frame around it."""
    for failure in getattr(error, "worker_failures", {}).values():
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, LtcoreError):
            return inner
    return LtcoreError(f"Ray Train failed: {error}")


def train_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    import ray.train

    from ltcore.runtime.cluster import quiet
    from ltcore.runtime.heartbeat import adopt_secrets
    from ltcore.runtime.ray_data import make_ray_loader

    quiet()
    adopt_secrets(config["heartbeat"], config["nonce"])
    context = _TrainContext(ray.train, Job(**config))
    try:
        execute(Job(**config), context, make_ray_loader)
    except StopRequested:
        return  # where it was told to; the record says so
    except LtcoreError:
        # Ray Train would start the workers again, only to meet the same error. Alone, the worker has said it in run.json; in
        # a group the others wait for this one, and only the error ends them.
        if context.world > 1 or not has_failed(config["run_uri"]):
            raise


class _TrainContext:
    """A Ray Train worker."""

    engine = "train"
    checkpoint_every_epoch = False

    def __init__(self, train: Any, job: Job) -> None:
        from ray.train.torch import get_device

        from ltcore.runtime.heartbeat import HeartbeatSender
        from ltcore.runtime.metrics import RayMetrics

        context = train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        # Asked for gloo, a worker makes do with the CPU; otherwise a GPU that was reserved and is not there is an error.
        in_name_only = os.environ.get(BACKEND) == "gloo" and not torch.cuda.is_available()
        self.device = torch.device("cpu") if in_name_only else get_device()
        self._train = train
        self._sender = HeartbeatSender(job.heartbeat if self.rank == 0 else "", job.label)
        self._observer = RayMetrics(job.info["group"] or job.info["id"], job.label, self.rank)

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        # Metrics alone: they go on to Tune. The checkpoint already lies in the run directory, on the same storage.
        del checkpoint
        self._sender.epoch(metrics)
        self._observer.epoch(metrics)
        if not has_validation(metrics):
            return
        self._train.report({key: value for key, value in metrics.items() if value is not None})

    def saved(self) -> None:
        """Nobody above takes checkpoints inside an epoch."""

    def stop_requested(self) -> bool:
        return False

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        self._sender.beat(epoch, images_seen, total_images)
