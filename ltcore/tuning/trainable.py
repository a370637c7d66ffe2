"""A trial of a sweep: what Ray Tune runs, and what it hears of it."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltcore.config.json_record import JsonRecord
from ltcore.config.records import SweepRecord
from ltcore.config.schema import RunConfig
from ltcore.errors import LtcoreError, RemovedError
from ltcore.retry import retrying
from ltcore.runtime.placement import Scaling
from ltcore.runtime.ray_context import execute_on_node
from ltcore.runtime.ray_task import TaskContext
from ltcore.runtime.ray_train import fit_with_train, has_validation
from ltcore.runtime.worker import begin
from ltcore.storage import exists, join
from ltcore.stores import place_of
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import StopRequested
from ltcore.training.record import RunInfo, failed_start
from ltcore.training.run import Job, scratch_dir
from ltcore.training.sync import RunSync
from ltcore.training.weights_input import with_input
from ltcore.tuning.trials import folder_of
from ltcore.version import code_version

TRIAL, UNTIL = "trial", "until"
"""Keys beside a trial's parameters: its name, which outlives Tune's own, and the epoch at which this part of it ends."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan(JsonRecord):
    """What all trials of a search share. Plain JSON."""

    config: Mapping[str, Any]
    """Tree of the ``RunConfig`` that the parameters of a trial change."""
    data_uri: str
    sweep_uri: str
    id_prefix: str
    """Start of the ids of all runs of the sweep."""
    group: str
    """Name of the sweep."""
    scaling: Scaling
    engine: str
    mutable: tuple[str, ...] = ()
    """Keys that population-based training may change."""
    members: tuple[str, ...] = ()
    """Names of the trials of a population; () elsewhere."""
    heartbeat: str = ""
    """See ``Job.heartbeat``."""
    nonce: str = field(default="", repr=False)
    code: str = field(default_factory=code_version)
    own_input: bool = False
    """Whether each trial starts from weights that expect other images, see ``with_input``."""
    forked: Mapping[str, str] = field(default_factory=dict)
    """Trial -> directory of the run whose checkpoint it starts from."""


def trial_name(config: Mapping[str, Any], tune_id: str, members: Sequence[str]) -> str:
    """Returns the name of a trial.

    In a population a member takes over the whole ``config`` of a better one, so there the name is the place among
    ``members`` with which Tune's id ends.
    """
    return members[int(tune_id.rsplit("_", 1)[-1])] if members else config[TRIAL]


class TrialContext(TaskContext):
    """A Tune trial in its own process. ``report`` blocks until Tune has heard, and raises SystemExit where it says stop."""

    def __init__(self, job: Job, keep_checkpoints: bool) -> None:
        super().__init__(job)
        self.checkpoint_every_epoch = keep_checkpoints
        self._place = place_of(job.run_uri)

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        super().report(metrics, checkpoint)
        if not has_validation(metrics):
            return
        from ray import tune

        handed = tune.Checkpoint.from_directory(str(checkpoint)) if self.checkpoint_every_epoch and checkpoint else None
        retrying(self._place, lambda: tune.report(dict(metrics), checkpoint=handed))  # Tune copies the checkpoint once


def tune_trial(config: dict[str, Any], plan: dict[str, Any]) -> None:
    """Trains one part of a trial, as Tune's function trainable.

    ``config`` contains the swept dotted keys, TRIAL and UNTIL; ``plan`` what all trials share, a ``TrialPlan``.
    """
    shared = TrialPlan.from_json(plan, "the plan of the trials")
    begin(shared.heartbeat, shared.nonce)
    from ray import tune

    if not exists(join(shared.sweep_uri, SweepRecord.FILE)):
        return  # somebody removed the sweep, as the driver will notice; nothing of it is brought back
    params = dict(config)
    trial = trial_name(params, tune.get_context().get_trial_id(), shared.members)
    until = params.pop(UNTIL, 0)
    params.pop(TRIAL, None)
    job = trial_job(shared, trial, params, until)
    if shared.engine == "train":
        from ray.tune.integration.ray_train import TuneReportCallback

        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "1"  # Tune waits this long for a driver that does not hear it

        with _told_by_record(job.run_uri):
            fit_with_train(job, shared.scaling, storage=shared.sweep_uri, callbacks=[TuneReportCallback()])
        return
    if shared.mutable:
        _adopt_checkpoint(job.run_uri)
    context = TrialContext(job, keep_checkpoints=bool(shared.mutable))
    with contextlib.ExitStack() as through:
        through.callback(context.over)
        with _told_by_record(job.run_uri):
            execute_on_node(job, context)


def label_of(trial: str) -> str:
    """Returns the name of a trial in progress lines and signs of life."""
    return f"trial {trial}"


def trial_job(plan: TrialPlan, trial: str, params: Mapping[str, Any], until: int = 0, *, test: bool = False) -> Job:
    """Returns the job of one part of a trial; with ``test`` it ends with the test, also where the trial is finished."""
    config = RunConfig.from_dict(plan.config).replace({**params, "name": f"trial-{trial}"})
    return Job(
        config=(with_input(config) if plan.own_input else config).to_dict(),
        data_uri=plan.data_uri,
        run_uri=folder_of(plan.sweep_uri, trial),
        info=RunInfo(
            id=f"{plan.id_prefix}-{trial}",
            kind="trial",
            group=plan.group,
            test=test,
            mutable=plan.mutable,
            until=until,
        ),
        cpus=plan.scaling.cpus_per_worker,
        gpus=plan.scaling.gpus_per_worker,
        heartbeat=plan.heartbeat,
        nonce=plan.nonce,
        code=plan.code,
        label=label_of(trial),
        fork_of=plan.forked.get(trial, ""),
    )


@contextlib.contextmanager
def _told_by_record(run_uri: str) -> Iterator[None]:
    """Suppresses errors that are in the run's record, which the driver judges.

    Any other error is raised, so that Tune starts the trial again.
    """
    before = failed_start(run_uri)
    try:
        yield
    except StopRequested:
        pass  # the part ends here
    except RemovedError as error:
        print(error)  # for Ray's log: another start would bring back what somebody removed
    except Exception as error:
        if failed_start(run_uri) in (None, before):  # what an earlier start failed of says nothing of this one
            raise
        if not isinstance(error, LtcoreError):
            traceback.print_exc()  # for Ray's log; the record has the last line


def _adopt_checkpoint(run_uri: str) -> None:
    """Replaces this trial's checkpoint by that of a better trial, which Tune hands over in population-based training."""
    from ray import tune

    handed = tune.get_checkpoint()
    if handed is None:
        return
    sync = RunSync(run_uri, scratch_dir(run_uri))
    sync.local.mkdir(parents=True, exist_ok=True)
    sync.pull()

    def adopt() -> None:
        with handed.as_directory() as source:
            ckpt.adopt(sync.local / "checkpoints", Path(source))

    retrying(place_of(run_uri), adopt)
    sync.replaces = True  # the best one so far is of weights that this trial has thrown away
    sync.close()
