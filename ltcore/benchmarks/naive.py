"""The tutorial pattern for tuning Ray Train: one Tune function per trial that starts a TorchTrainer."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from ltcore.training.context import LocalContext
from ltcore.training.run import Job, execute

_ends: dict[str, float] = {}
"""Ends of trials by name. Tune pickles its callbacks with the experiment, so they reach the driver through this module.
"""


class _Callback(tune.Callback):
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _ends[trial.config["name"]] = time.monotonic()


def run_naive(jobs: dict[str, Job], folder: str) -> dict[str, float]:
    """Trains every job in a trial of its own, one after another. Returns when each ended."""
    _ends.clear()
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(naive_trial, jobs=jobs, folder=folder), {"CPU": 0.01}),
        param_space={"name": tune.grid_search(list(jobs))},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(name="tune", storage_path=folder, callbacks=[_Callback()], verbose=0),
    )
    errors = tuner.fit().errors
    if errors:
        raise errors[0]
    return dict(_ends)


def naive_trial(config: dict[str, Any], jobs: dict[str, Job], folder: str) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    from ltcore.runtime.cluster import quiet

    quiet()
    TorchTrainer(
        naive_worker,
        train_loop_config=jobs[config["name"]].to_json(),
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name=f"train-{config['name']}", storage_path=folder),
    ).fit()


def naive_worker(config: dict[str, Any]) -> None:
    execute(Job.from_json(config, "the job"), LocalContext())
