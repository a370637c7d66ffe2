"""The search stage on Ray Tune: searcher, scheduler, and a trainable that runs in reused processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray.tune as tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from ltcore.config.sweep_space import SpaceSpec, SweepConfig, trial_params
from ltcore.data.storage import join, open_fs
from ltcore.errors import ConfigError
from ltcore.runtime.capacity import Scaling
from ltcore.runtime.worker import TRIAL, trial_name, tune_trial

TUNE_DIR = "tune"


@dataclass
class Listener:
    """The driver's ears. Tune pickles its callbacks with the experiment, so they reach the driver through this module."""

    on_end: Any
    stop_wanted: Any


_listening: list[Listener] = []


class _Callback(tune.Callback):
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for listener in _listening:
            listener.on_end(*_named(trial), trial.last_result, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for listener in _listening:
            error = trial.get_pickled_error() or trial.get_error()
            listener.on_end(*_named(trial), trial.last_result, error)


def _named(trial: Any) -> tuple[str, dict[str, Any]]:
    params = dict(trial.config)
    return trial_name(trial.trial_id, params), params


class _Stopper(tune.Stopper):
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return any(listener.stop_wanted() for listener in _listening)


@dataclass(frozen=True)
class SearchPlan:
    """What the search stage needs to know."""

    sweep: SweepConfig
    seed: int
    sweep_uri: str
    trial: dict[str, Any]
    """What all trials share (see ``worker.tune_trial``); plain JSON."""
    scaling: Scaling
    engine: str
    total_images: int
    grace_fraction: float
    """Fraction of ``total_images`` before which no trial is stopped."""
    concurrent: int
    points: Sequence[tuple[str, dict[str, Any]]] = ()
    """(name, parameters) of the trials to run, where they are known beforehand: random and grid search."""
    folder: str = TUNE_DIR
    """Tune's directory in the sweep's; a search that goes on after an earlier one ended has one of its own."""
    driver_resource: str = ""
    """Custom resource that holds trial drivers on a stable node; '' takes a hundredth of a CPU anywhere."""
    failures: int = 0
    """How often a trial whose process died is started again."""


def domain(spec: SpaceSpec) -> Any:
    """The same values as a Tune domain."""
    if spec.kind in ("choice", "grid"):
        return tune.choice(list(spec.values))
    low, high = (float(str(value)) for value in spec.values)
    if spec.kind == "int":
        return tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if spec.kind == "log" else tune.uniform(low, high)


def scheduler(plan: SearchPlan) -> TrialScheduler:
    """ASHA in images seen, so that a trial is judged by what it cost; PBT for population-based training."""
    sweep = plan.sweep
    if sweep.search == "pbt":
        return PopulationBasedTraining(
            time_attr="images_seen",
            metric=sweep.metric,
            mode="max",
            perturbation_interval=max(1, plan.total_images // 8),
            hyperparam_mutations={key: domain(sweep.space[key]) for key in sweep.hot},
            synch=False,
        )
    if plan.grace_fraction >= 1:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="images_seen",
        metric=sweep.metric,
        mode="max",
        max_t=plan.total_images + 1,  # at max_t ASHA stops a trial, also one that is about to finish by itself
        grace_period=max(1, int(plan.grace_fraction * plan.total_images)),
        reduction_factor=sweep.reduction_factor,
    )


def searcher(plan: SearchPlan) -> Any:
    """Values known beforehand (random, grid, the start of pbt) are handed to Tune as points; tpe asks Optuna."""
    if plan.sweep.search == "tpe":
        return ConcurrencyLimiter(_optuna(plan), max_concurrent=plan.concurrent)
    if plan.sweep.search == "pbt":
        points = [dict(p) for p in trial_params(plan.sweep, plan.seed)]
    else:
        points = [{TRIAL: name, **params} for name, params in plan.points]
    return BasicVariantGenerator(points_to_evaluate=points, max_concurrent=plan.concurrent)


def _optuna(plan: SearchPlan) -> Searcher:
    try:
        import optuna
    except ImportError:
        raise ConfigError("search=tpe needs Optuna, which is not installed: pip install 'ltcore[search]'.") from None
    from ltcore.runtime.tpe import PruneAwareSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return PruneAwareSearch(
        total_images=plan.total_images,
        metric=plan.sweep.metric,
        mode="max",
        sampler=optuna.samplers.TPESampler(seed=plan.seed),
    )


def run_search(plan: SearchPlan, listener: Listener, debug: bool) -> None:
    """Runs or continues the search. Results lie in the trials' run directories."""
    resources: dict[str, float]
    if plan.engine == "train":
        resources = {plan.driver_resource: 0.01} if plan.driver_resource else {"CPU": 0.01}
    else:
        resources = {"CPU": plan.scaling.cpus_per_worker, "GPU": plan.scaling.gpus_per_worker}
    trainable = tune.with_resources(tune.with_parameters(tune_trial, plan=plan.trial), resources)
    path = join(plan.sweep_uri, plan.folder)
    space = {key: domain(spec) for key, spec in plan.sweep.space.items()}
    if plan.points:
        space[TRIAL] = tune.choice([name for name, _ in plan.points])  # every value comes from points_to_evaluate
    filesystem, storage = open_fs(plan.sweep_uri)
    _listening[:] = [listener]
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.CRITICAL)
    try:
        if tune.Tuner.can_restore(open_fs(path)[1], storage_filesystem=filesystem):
            tuner = tune.Tuner.restore(
                open_fs(path)[1],
                trainable,
                storage_filesystem=filesystem,
                resume_unfinished=True,
                restart_errored=False,
            )
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=space,
                tune_config=tune.TuneConfig(
                    num_samples=len(plan.points) or plan.sweep.size,
                    search_alg=searcher(plan),
                    scheduler=scheduler(plan),
                    # A driver of Ray Train cannot be interrupted: ended with its process, its workers go at once.
                    reuse_actors=plan.engine != "train",
                ),
                run_config=tune.RunConfig(
                    name=plan.folder,
                    storage_path=storage,
                    storage_filesystem=filesystem,
                    callbacks=[_Callback()],
                    stop=_Stopper(),
                    verbose=2 if debug else 0,
                    failure_config=tune.FailureConfig(max_failures=plan.failures),
                    sync_config=tune.SyncConfig(sync_period=30),
                ),
            )
        tuner.fit()
    finally:
        _listening.clear()
