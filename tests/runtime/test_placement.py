"""What cannot be placed is refused with the numbers; silence ends in a message; both without Ray."""

from __future__ import annotations

import pytest

from ltcore.errors import CapacityError
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.placement import Scaling, concurrency, demand

LAPTOP = Cluster(local=True, cpus=4, real_cpus=2, gpus=0, nodes=1, address="", dashboard="")
POOL = Cluster(local=False, cpus=40, real_cpus=40, gpus=8, nodes=5, address="", dashboard="")


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
