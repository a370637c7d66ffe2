"""The search stage on Ray Tune, which runs parts of trials and starts again what dies.

What is searched, and which trials go on, is decided in ``rungs`` from the trials' own records; Tune has no say in it and
nothing to remember. So a search that goes on is a new Tune run over what is left, and nothing that lies on the storage is
unpickled. Population-based training alone is Tune's: its scheduler copies checkpoints between trials that run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune as tune
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from ltcore.config.space import SpaceSpec
from ltcore.config.sweep import SweepConfig
from ltcore.evaluation.catalog import minimized
from ltcore.runtime.cluster import ON_HEAD, session_folder
from ltcore.runtime.ray_context import may_be_taken
from ltcore.storage import open_fs
from ltcore.tuning.rungs import Course
from ltcore.tuning.trainable import TRIAL, UNTIL, TrialPlan, trial_name, tune_trial

LOST, LOST_ON_CLUSTERS = 3, 10
"""How often a trial whose process dies is started again within one command; machines that are lent are taken away, too."""


@dataclass(frozen=True)
class SearchPlan:
    """What the search stage needs to know."""

    trial: TrialPlan
    concurrent: int
    lost_limit: int = LOST
    """How often a trial whose process dies is started again."""
    debug: bool = False


def _nothing(trial: str) -> None:
    """Does nothing, for drivers that need not hear of it."""


@dataclass(frozen=True)
class Ears:
    """What the driver of a search asks and hears."""

    saving: Callable[[], bool]
    """Whether runs save a checkpoint and end, so that none begins."""
    stop_wanted: Callable[[], bool]
    """Whether those that have not done so are to be ended."""
    lost: Callable[[str, str], None]
    """A trial's process ended without a word in its record, for the last time; in which words Ray said so."""
    ended: Callable[[str], None] = _nothing
    """A trial of a population ended; of a cohort's trials its book hears."""


class _StaysHere:
    """State of the driver's process: Tune pickles what it is given, for a restore that never happens."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Parts(_StaysHere, Searcher):
    """Hands Tune the parts whose turn it is."""

    def __init__(self, course: Course, saving: Callable[[], bool]) -> None:
        super().__init__()
        self._course, self._saving = course, saving
        self._running: dict[str, str] = {}
        self.problem: Exception | None = None
        """What ended the search from inside; Tune would wrap it in an error of its own."""

    def suggest(self, trial_id: str) -> Any:
        if self._saving():
            return Searcher.FINISHED
        try:
            part = self._course.next_part()
        except Exception as error:
            self.problem = error
            return Searcher.FINISHED
        if part is None:
            return Searcher.FINISHED if self._course.over else None
        self._running[trial_id] = part.trial
        return {TRIAL: part.trial, UNTIL: part.until, **part.params}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._course.ended(self._running.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the records say where the search is."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search goes on from the trials' records")


class _Callback(_StaysHere, tune.Callback):
    def __init__(self, ears: Ears, members: Sequence[str] = ()) -> None:
        self._ears, self._members = ears, members

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ears.ended(trial_name(trial.config, trial.trial_id, self._members))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial_name(trial.config, trial.trial_id, self._members)
        self._ears.lost(name, last_error(trial.error_file))
        self._ears.ended(name)


def last_error(file: str | None) -> str:
    """Returns what Tune's text file says of a trial's last failure, in a line.

    It is in Ray's own words, or the end of a traceback.
    """
    lines = list[str]()
    if file is not None:
        with contextlib.suppress(OSError):  # which would end the whole search
            lines = Path(file).read_text(errors="replace").rpartition("Failure # ")[2].strip().splitlines()[1:]
    is_traceback = any(line.lstrip().startswith('File "') for line in lines)
    return lines[-1 if is_traceback else 0].strip() if lines else "it ended without a word"


class _Stopper(_StaysHere, tune.Stopper):
    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._wanted()


def domain(spec: SpaceSpec) -> Any:
    """Returns the same values as a Tune domain, for population-based training to draw from."""
    if spec.kind == "choice":
        return tune.choice(list(spec.values))
    low, high = (float(str(value)) for value in spec.values)
    if spec.kind == "int":
        return tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if spec.kind == "log" else tune.uniform(low, high)


def run_course(plan: SearchPlan, course: Course, ears: Ears) -> None:
    """Runs parts of trials until the course is over. Results are in the trials' run directories."""
    parts = _Parts(course, ears.saving)
    stop = _Stopper(lambda: parts.problem is not None or ears.stop_wanted())
    # In Ray's own folder it is removed with that, also after a kill.
    with tempfile.TemporaryDirectory(prefix="ltcore-tune-", dir=session_folder()) as scratch:
        _fit(
            plan,
            tune.TuneConfig(
                search_alg=ConcurrencyLimiter(parts, plan.concurrent),
                scheduler=FIFOScheduler(),
                num_samples=-1,
                reuse_actors=_reuses_processes(plan),
            ),
            {"name": "search", "storage_path": scratch, "stop": stop, "callbacks": [_Callback(ears)]},
        )
    if parts.problem is not None:
        raise parts.problem


def run_population(
    plan: SearchPlan,
    sweep: SweepConfig,
    points: Mapping[str, dict[str, Any]],
    *,
    total_images: int,
    sweep_uri: str,
    folder: str,
    ears: Ears,
) -> None:
    """Runs population-based training over ``points`` (name -> parameters), continuing each where it is.

    Which trial copies which depends on which are there at the time, so two runs of one seed differ: waiting for the
    whole population would hang forever where a member fails. ``folder`` below the sweep's contains the checkpoints that
    are copied, within reach of all nodes.
    """
    filesystem, storage = open_fs(sweep_uri)
    scheduler = PopulationBasedTraining(
        time_attr="images_seen",
        metric=sweep.metric,
        mode="min" if minimized(sweep.metric) else "max",
        perturbation_interval=max(1, total_images // 8),
        hyperparam_mutations={key: domain(sweep.space[key]) for key in sweep.mutable},
    )
    members = list(points)
    _fit(
        dataclasses.replace(plan, trial=dataclasses.replace(plan.trial, members=tuple(members))),
        tune.TuneConfig(
            search_alg=BasicVariantGenerator(points_to_evaluate=list(points.values()), max_concurrent=plan.concurrent),
            scheduler=scheduler,
            num_samples=len(members),
            reuse_actors=_reuses_processes(plan),
        ),
        {
            "name": folder,
            "storage_path": storage,
            "storage_filesystem": filesystem,
            "stop": _Stopper(ears.stop_wanted),
            "callbacks": [_Callback(ears, members)],
        },
        {key: domain(spec) for key, spec in sweep.space.items()},  # of which the points take the place
    )


def _reuses_processes(plan: SearchPlan) -> bool:
    """Tells whether a trial's process may do another's work afterwards.

    A driver of Ray Train cannot be interrupted: ended with its process, its workers go at once. And where a machine is taken
    away, Tune gives a trial that was lost with it to a process that waited there, and for this trial's second end, in the same
    moment, it has no retry.
    """
    return plan.trial.engine != "train" and not may_be_taken()


def _fit(plan: SearchPlan, config: tune.TuneConfig, run: dict[str, Any], space: dict[str, Any] | None = None) -> None:
    resources: dict[str, float]
    if plan.trial.engine == "train":
        resources = ON_HEAD  # a CPU of its own would be missing for the workers that it waits for
    else:
        resources = {"CPU": plan.trial.scaling.cpus_per_worker, "GPU": plan.trial.scaling.gpus_per_worker}
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.INFO if plan.debug else logging.CRITICAL)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(tune_trial, plan=plan.trial.to_json()), resources),
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            verbose=2 if plan.debug else 0,
            failure_config=tune.FailureConfig(max_failures=plan.lost_limit),
            sync_config=tune.SyncConfig(sync_period=30),
            **run,
        ),
    )
    try:
        tuner.fit()
        return
    except KeyboardInterrupt as error:
        kind = type(error)
    # Tune cleans up after errors alone, and the interrupt's traceback would hold its actors: on a Ray that goes on they would
    # wait for ever, on CPUs that others need.
    del tuner
    gc.collect()
    raise kind
