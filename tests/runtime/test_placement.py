"""What is decided of a run before it starts; what cannot be placed is refused with the numbers. All without Ray."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ltcore.config.execution import PlaceArgs
from ltcore.config.load import load_run
from ltcore.errors import CapacityError, ConfigError
from ltcore.runtime import ray_task
from ltcore.runtime.cluster import ON_HEAD, Cluster
from ltcore.runtime.doctor.checks import GREEN, RED, capacity, no_capacity
from ltcore.runtime.placement import Demand, Placement, Scaling, concurrency, demand
from ltcore.runtime.ray_train import SPOT_FAILURES
from ltcore.training.run import Job

LAPTOP = Cluster(local=True, cpus=4, real_cpus=2, gpus=0, nodes=1, address="")
POOL = Cluster(local=False, cpus=40, real_cpus=40, gpus=8, nodes=5, address="")


def test_as_many_trials_as_there_are_real_cores() -> None:
    assert concurrency(demand(Scaling(), "trial", streams=False), LAPTOP, max_gpus=None) == 2
    assert concurrency(demand(Scaling(cpus_per_worker=2), "trial", streams=False), LAPTOP, max_gpus=None) == 1


def test_two_workers_and_their_data_tasks_fit_a_small_machine_one_at_a_time() -> None:
    assert concurrency(demand(Scaling(workers=2), "train", streams=True), LAPTOP, max_gpus=None) == 1


def test_gpus_bound_the_number_of_trials() -> None:
    need = demand(Scaling(workers=2, cpus_per_worker=4, gpus_per_worker=1), "train", streams=True)
    assert concurrency(need, POOL, max_gpus=None) == 4
    assert concurrency(need, POOL, max_gpus=4) == 2


def test_the_impossible_is_refused_with_the_numbers() -> None:
    need = demand(Scaling(workers=8, cpus_per_worker=2), "train", streams=True)
    with pytest.raises(
        CapacityError, match=r"16 CPUs \+ 1 for data tasks; this machine offers at most 4 CPUs and 0 GPUs.*--workers"
    ):
        concurrency(need, LAPTOP, max_gpus=None)


def test_data_tasks_always_keep_a_cpu() -> None:
    assert demand(Scaling(workers=4), "train", streams=True).data_cpus == 1
    with pytest.raises(CapacityError):
        concurrency(demand(Scaling(workers=4), "train", streams=True), LAPTOP, max_gpus=None)
    assert concurrency(demand(Scaling(workers=4), "train", streams=False), LAPTOP, max_gpus=None) == 1


def test_a_placement_says_what_one_run_takes_and_how_many_fit() -> None:
    cfg = load_run("cifar100_lt_ce", {"data.loader": "ray"})
    args = PlaceArgs(workers=(1, 2), cpus_per_worker=2, max_gpus=6)
    assert Placement.decide(args, POOL, "s3://bucket/runs", cfg) == Placement(
        engine="train",
        scaling=Scaling(workers=1, max_workers=2, cpus_per_worker=2, gpus_per_worker=1.0),
        demand=Demand(cpus=2, gpus=1, data_cpus=1),
        concurrent=6,
        capacity_source="by --max-gpus",
    )
    local = Placement.decide(PlaceArgs(), LAPTOP, "/home/me/runs", load_run("cifar100_lt_ce"))
    assert (local.engine, local.concurrent, local.describe()) == ("trial", 2, "1 CPU; 2 at a time")


@pytest.mark.parametrize(
    ("changes", "root", "search", "said"),
    [
        ({}, "/home/me/runs", "random", "path of one machine"),
        ({"workers": (2, 2)}, "s3://b", "pbt", r"sweep\.search=pbt needs --engine trial"),
        ({"workers": (2, 2), "engine": "trial"}, "s3://b", "random", "needs --engine train"),
        ({"workers": (3, 3)}, "s3://b", "random", "3 workers cannot share"),
    ],
)
def test_every_refusal_of_a_placement_comes_through_its_one_decision(
    changes: dict[str, Any], root: str, search: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Placement.decide(PlaceArgs(**changes), POOL, root, load_run("cifar100_lt_ce"), search=search)


def test_the_doctor_counts_without_a_recipe_and_says_what_does_not_fit() -> None:
    fits = capacity(Placement.decide(PlaceArgs(), POOL, "s3://b"))
    assert (fits.state, fits.found.startswith("one run takes 1 CPU and 1 GPU; 8 at a time, by the nodes")) == (
        GREEN,
        True,
    )
    with pytest.raises(CapacityError) as caught:
        Placement.decide(PlaceArgs(max_gpus=0.5), POOL, "s3://b")
    line = no_capacity(caught.value)
    assert line.state == RED and line.found.startswith("One run needs 1 CPU and 1 GPU; the cluster offers at most")
    assert line.fix.startswith("Lower --workers")


def test_a_task_reserves_what_it_computes_with_and_a_driver_of_ray_train_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    class Task:
        def options(self, **options: Any) -> Task:
            asked.append(options)
            return self

        def remote(self, *args: Any) -> None:
            pass

    for task in ("run_job", "run_job_alone"):
        monkeypatch.setattr(ray_task, task, Task())
    job = Job(config={}, data_uri="", run_uri="/runs/a", info={})
    scaling = Scaling(workers=2, cpus_per_worker=4, gpus_per_worker=0.5)
    for engine in ("trial", "train"):
        ray_task.submit(job, engine, scaling)
    driver = {"num_cpus": 0, "num_gpus": 0, "resources": ON_HEAD}
    assert asked == [{"num_cpus": 4, "num_gpus": 0.5, "max_retries": 3}, {**driver, "max_retries": 3}]
    ray_task.submit(dataclasses.replace(job, run_uri="s3://bucket/a"), "train", scaling)
    assert asked[-1] == {**driver, "max_retries": SPOT_FAILURES}, "machines of a cluster may be taken back often"
    assert list(ON_HEAD) == ["node:__internal_head__"]


def test_silence_is_told_with_what_a_run_needs_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_task.ray, "available_resources", lambda: {"CPU": 1.5})
    monkeypatch.setattr(ray_task.ray, "cluster_resources", lambda: {"CPU": 40.0, "GPU": 8.0})
    error = ray_task.stall_error(900, Demand(cpus=2, gpus=1, data_cpus=0))
    assert str(error) == (
        "Nothing happened for 900 s: 2 CPUs and 1 GPU for one run; 1.5 of 40 CPUs and 0 of 8 GPUs are free. Everything was "
        "canceled; the same command continues."
    )


def test_what_waits_for_other_processes_is_given_the_patience_of_their_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTCORE_STORAGE_PATIENCE_S", "600")
    alone = Placement("trial", Scaling(), Demand(1, 0, 0), 1, "")
    group = Placement("train", Scaling(workers=2), Demand(2, 0, 0), 1, "")
    streamed = Placement("trial", Scaling(), Demand(1, 0, 1), 1, "")
    assert [place.silence_s(300) for place in (alone, group, streamed)] == [300, 780, 780]
    assert group.silence_s(900) == 900
