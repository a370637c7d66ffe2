"""A machine that is too slow runs fewer trials, never shorter ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ltcore.config.load import base_run
from ltcore.config.sweep import read_sweep
from ltcore.errors import ConfigError
from ltcore.runtime import ray_occupancy
from ltcore.runtime.placement import Demand, Scaling
from ltcore.tuning import budget
from tests.records import sweep_record

PER_EPOCH = 352


def planned(
    monkeypatch: pytest.MonkeyPatch, rate: float, *, local: bool = True, gpus: int = 0, stored: Any = None, **words: str
) -> tuple[int, list[str]]:
    """The number of trials on a machine of this speed, and what is said. A run has 10 epochs and no validation images."""
    keys = {"train.epochs": "10", **{f"sweep.{key}": value for key, value in words.items()}}
    sweep = read_sweep("tune_lpa", keys)
    setup: Any = SimpleNamespace(
        sweep=sweep,
        base=base_run(sweep),
        data_uri="data",
        images_per_epoch=PER_EPOCH,
        cluster=SimpleNamespace(local=local),
        placement=SimpleNamespace(
            concurrent=2, scaling=Scaling(cpus_per_worker=1, gpus_per_worker=gpus), demand=Demand(1, gpus, 0)
        ),
    )
    monkeypatch.setattr(budget, "images_per_s", lambda *_, **__: rate)
    monkeypatch.setattr(budget, "read_manifest", lambda _: SimpleNamespace(splits={}))
    said: list[str] = []
    return budget.planned_trials(setup, stored, said.append), said


def test_the_trials_that_fit_are_run_at_full_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes 10 s here. With a cut at half of the training, n trials and the baseline are n/2 + 3/2 + 1 runs."""
    for budget_s, size in (("33", 8), ("30", 7), ("26", 5), ("25", 5), ("24.9", 4), ("1", 3)):
        found, (said,) = planned(monkeypatch, PER_EPOCH, budget_s=budget_s)
        assert found == size
        if size < 8:
            assert (
                f"8 trials would take about 32 s instead of {float(budget_s):.0f} s; the first {size} of them" in said
            )
            assert "full length" in said and "sweep.budget_s=null" in said
        else:
            assert said == "warm-up: 352 images/s per trial, search in about 32 s"


def test_where_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(monkeypatch, 1, budget_s="null") == (8, [])
    assert planned(monkeypatch, 1, budget_s="30", local=False) == (8, [])
    assert planned(monkeypatch, 1, num_trials="2", budget_s="30")[0] == 2, "fewer than three were asked for"
    assert planned(monkeypatch, 1, num_trials="24") == (24, []), "the file's budget is that of its 8 trials"
    for there, size in ((5, 5), (8, 8)):
        stored = sweep_record(num_trials=there, cut_from=8)
        assert planned(monkeypatch, 1e9, stored=stored) == (size, []), "it was decided when the sweep began"


def test_tpe_runs_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 trials in batches of 5, each cut at half of its training: 5/2 + 3/2 runs of a batch."""
    for budget_s, size in (("46", 10), ("44.9", 5), ("1", 5), ("1000", 24)):
        found, _ = planned(monkeypatch, PER_EPOCH, budget_s=budget_s, search="tpe", num_trials="24")
        assert found == size


def test_all_trials_are_run_where_the_measurement_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SimpleNamespace(remote=lambda *_: "ref")
    for name, value in {
        "remote": lambda **_: lambda _: task,
        "wait": lambda refs, timeout, num_returns=1: ([], refs),
        "cancel": lambda *_, **__: None,
        "cluster_resources": dict,
        "available_resources": dict,
    }.items():
        monkeypatch.setattr(ray, name, value)
    monkeypatch.setattr(ray_occupancy, "PATIENCE_S", 0.0)
    monkeypatch.setattr(ray_occupancy, "SAID_AFTER_S", 0.0)
    found, said = planned(monkeypatch, 0.0, gpus=1, budget_s="30")
    assert found == 8
    needed = "1 CPU and 1 GPU for one run; 0 of 0 CPUs and 0 of 0 GPUs are free"
    late = "no measurement came within 0 minutes, so all 8 trials are run, however long they take"
    assert said == [f"warm-up; needed: {needed}", f"warm-up: {late}"]


@pytest.mark.parametrize("search", ["grid", "pbt"])
def test_a_part_of_a_grid_or_of_a_population_is_refused(search: str) -> None:
    words = {"sweep.search": search, "sweep.mutable": "objective.terms.lpa.weight"}
    words |= {
        "sweep.space.objective.terms.lpa.weight": "choice:0.1,1",
        "sweep.space.objective.terms.dro.radius": "null",
    }
    assert read_sweep("tune_lpa", words).budget_s is None, "the file's is for its own search"
    with pytest.raises(ConfigError, match=rf"^sweep.budget_s=60 does not go with search={search}"):
        read_sweep("tune_lpa", {**words, "sweep.budget_s": "60"})
