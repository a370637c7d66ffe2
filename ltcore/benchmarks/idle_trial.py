"""A trial that trains nothing: it says a few numbers, leaves the record of a finished one, and ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ltcore.benchmarks.scale import record_of
from ltcore.tuning.trainable import TRIAL, TrialPlan
from ltcore.tuning.trials import folder_of

EPOCHS = 3


def idle_trial(config: dict[str, Any], plan: dict[str, Any]) -> None:
    """Takes the place of ``tune_trial``, under the same configuration and plan."""
    from ray import tune

    trial, shared = config[TRIAL], TrialPlan.from_json(plan, "the plan of the trials")
    record = record_of(trial)
    for epoch in range(1, EPOCHS + 1):
        tune.report({"epoch": epoch, **record.last})
    over: dict[str, Any] = {"finished_at": record.started_at, "seconds": 0.0, "epochs_done": EPOCHS}
    replace(record, status="finished", **over).write(folder_of(shared.sweep_uri, trial))
