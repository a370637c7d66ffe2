"""What the search asks of Tune."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ltcore.config.space import SpaceSpec
from ltcore.tuning import search


@pytest.mark.parametrize(
    ("engine", "watcher", "reused"), [("trial", "0", True), ("trial", "1", False), ("train", "0", False)]
)
def test_no_process_waits_for_another_trial_where_its_machine_may_be_taken_away(
    engine: str, watcher: str, reused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[Any] = []

    def tuner(*_: object, tune_config: Any, **__: object) -> Any:
        configs.append(tune_config)
        return SimpleNamespace(fit=lambda: None)

    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", watcher)
    monkeypatch.setattr(search.tune, "Tuner", tuner)
    scaling = SimpleNamespace(cpus_per_worker=1, gpus_per_worker=0)
    trial = SimpleNamespace(engine=engine, scaling=scaling, to_json=dict)
    plan: Any = SimpleNamespace(trial=trial, concurrent=2, lost_limit=3, debug=False)
    search.run_course(plan, SimpleNamespace(), search.Ears(lambda: False, lambda: False, lambda *_: None))  # type: ignore[arg-type]
    assert [config.reuse_actors for config in configs] == [reused]


def test_a_population_draws_both_ends_of_whole_numbers() -> None:
    drawn = search.domain(SpaceSpec("int", (2, 4))).sample(size=100, random_state=np.random.RandomState(0))
    assert set(drawn) == {2, 3, 4}
