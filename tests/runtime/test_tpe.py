"""Optuna hears the truth: a trial that ASHA ended early is pruned, one that reached the end is complete."""

from __future__ import annotations

import ray.tune as tune
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from ltcore.runtime.tpe import PruneAwareSearch


def test_stopped_trials_are_told_as_pruned_and_failed_ones_as_failed() -> None:
    search = PruneAwareSearch(
        total_images=100, space=None, metric="val/top1", mode="max", sampler=RandomSampler(seed=0)
    )
    search.set_search_properties("val/top1", "max", {"lr": tune.uniform(0, 1)})
    for trial in ("whole", "stopped", "failed"):
        assert 0 <= search.suggest(trial)["lr"] <= 1
        search.on_trial_result(trial, {"training_iteration": 1, "images_seen": 40, "val/top1": 0.3})
    search.on_trial_complete("whole", {"training_iteration": 2, "images_seen": 100, "val/top1": 0.6})
    search.on_trial_complete("stopped", {"training_iteration": 1, "images_seen": 40, "val/top1": 0.3})
    search.on_trial_complete("failed", None, error=True)
    states = [trial.state for trial in search._ot_study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert search._ot_study.trials[1].intermediate_values == {1: 0.3}
