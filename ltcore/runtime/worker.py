"""The worker side: contexts that let ``fit`` report to Ray, and the functions that Ray runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from ltcore.config.load import dump, from_dict, override
from ltcore.data.storage import join
from ltcore.runtime.capacity import Scaling
from ltcore.runtime.cluster import quiet
from ltcore.runtime.engine import fit_with_train, has_validation
from ltcore.runtime.execute import Job, execute
from ltcore.runtime.pulse import Sender


class TaskContext:
    """A Ray task: nobody decides about it, the driver only listens."""

    engine = "trial"
    rank = 0
    world = 1
    checkpoint_every_epoch = False

    def __init__(self, job: Job) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._sender = Sender(job.pulse, job.shown_as)

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        self._sender.epoch(metrics)

    def stop_requested(self) -> bool:
        return False

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        self._sender.beat(epoch, images_seen, total_images)


class TrialContext(TaskContext):
    """A Tune trial in its own process. ``report`` blocks until Tune decides, and raises SystemExit where it says stop."""

    def __init__(self, job: Job, keep_checkpoints: bool) -> None:
        super().__init__(job)
        self.checkpoint_every_epoch = keep_checkpoints

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        super().report(metrics, checkpoint)
        if not has_validation(metrics):
            return
        from ray import tune

        handed = tune.Checkpoint.from_directory(str(checkpoint)) if self.checkpoint_every_epoch and checkpoint else None
        tune.report(dict(metrics), checkpoint=handed)


def tune_trial(config: dict[str, Any], plan: dict[str, Any]) -> None:
    """Tune's function trainable. ``config`` holds the swept dotted keys alone, ``plan`` all that trials share."""
    quiet()
    from ray import tune

    trial = tune.get_context().get_trial_id().rsplit("_", 1)[-1]
    scaling = Scaling(**plan["scaling"])
    job = Job(
        config=dump(override(from_dict(plan["config"]), {**config, "name": f"trial-{trial}"})),
        data_uri=plan["data_uri"],
        run_uri=join(plan["sweep_uri"], "trials", trial),
        info={
            "id": f"{plan['id_prefix']}-{trial}",
            "kind": "trial",
            "group": plan["group"],
            "test": False,
            "hot": plan["hot"],
        },
        cpus=scaling.cpus_per_worker,
        pulse=plan["pulse"],
        shown_as=f"trial {trial}",
    )
    if plan["engine"] == "train":
        from ray.tune.integration.ray_train import TuneReportCallback

        fit_with_train(job, scaling, storage=plan["sweep_uri"], callbacks=[TuneReportCallback()])
        return
    if plan["hot"]:
        _adopt_checkpoint(Path(job.run_uri))
    execute(job, TrialContext(job, keep_checkpoints=bool(plan["hot"])))


def _adopt_checkpoint(run_dir: Path) -> None:
    """Population-based training: Tune hands over the checkpoint of a better trial, which replaces this trial's own."""
    from ray import tune

    handed = tune.get_checkpoint()
    if handed is None:
        return
    folder = run_dir / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    with handed.as_directory() as source:
        step = int(json.loads((Path(source) / "meta.json").read_text())["step"])
        shutil.copytree(source, folder / f"last-{step:08d}")


@ray.remote
def preload() -> None:
    """Does nothing; unpickling it imported this module, so the process, which Ray keeps, starts its first run at once."""


@ray.remote(max_retries=2)
def run_job(job: dict[str, Any], engine: str, scaling: dict[str, Any]) -> dict[str, Any]:
    """One job as a Ray task: in this process, or as the driver of a Ray Train run."""
    quiet()
    if engine == "train":
        return fit_with_train(Job(**job), Scaling(**scaling), storage=None, callbacks=[])
    return execute(Job(**job), TaskContext(Job(**job)))
