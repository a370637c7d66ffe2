"""How many runs share a GPU, from what was measured of one: the boundaries, and what is said."""

from __future__ import annotations

import pytest

from ltcore.config.gpu_share import GpuShare, Occupancy
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.gpu_share import MOST, chosen, part, share_of, sharers, whole
from ltcore.runtime.placement import Demand, concurrency

GIB = 2**30


def found(**fields: object) -> Occupancy:
    values = {"device": "H200", "run": "base", "peak_bytes": 4 * GIB, "device_bytes": 100 * GIB, "busy": 0.25}
    return Occupancy(**{**values, "cpus": 64.0, "gpus": 1.0, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("busy", "count"),
    [(1.0, 1), (0.51, 1), (0.5, 2), (0.34, 2), (1 / 3, 3), (0.25, 4), (0.2501, 3), (0.125, 8), (0.01, 8), (0.0, 8)],
)
def test_kernels_of_runs_on_one_gpu_take_turns(busy: float, count: int) -> None:
    assert share_of(GIB, 100 * GIB, busy, 64, 1) == part(count)


@pytest.mark.parametrize(
    ("peak", "count"), [(100, 1), (91, 1), (46, 1), (45.4, 2), (30.3, 3), (30.4, 2), (22.7, 4), (11.36, 8), (1, 8)]
)
def test_memory_has_a_tenth_of_head_room(peak: float, count: int) -> None:
    assert share_of(int(peak * GIB), 100 * GIB, 0.0, 64, 1) == part(count)


@pytest.mark.parametrize(
    ("cpus", "gpus", "each", "count"),
    [(8, 1, 1, 8), (7, 1, 1, 7), (8, 8, 1, 1), (8, 2, 1, 4), (8, 1, 3, 2), (0, 1, 1, 1)],
)
def test_every_run_needs_its_cpus(cpus: float, gpus: float, each: float, count: int) -> None:
    assert share_of(GIB, 100 * GIB, 0.0, cpus, gpus, cpus_each=each) == part(count)


def test_the_largest_need_decides() -> None:
    assert sharers(20 * GIB, 100 * GIB, 0.3, 8, 1) == {"memory": 4, "time": 3, "CPUs": 8}
    assert share_of(20 * GIB, 100 * GIB, 0.3, 8, 1) == part(3)
    assert sharers(99 * GIB, 100 * GIB, 0.3, 8, 1)["memory"] == 0, "not even one has head-room"
    assert share_of(99 * GIB, 100 * GIB, 0.3, 8, 1) == 1


@pytest.mark.parametrize("count", range(1, MOST + 1))
def test_as_many_fit_as_are_meant_to_in_rays_units_too(count: int) -> None:
    share = part(count)
    assert round(share * 10_000) == pytest.approx(share * 10_000), "Ray counts in ten thousandths"
    assert count * round(share * 10_000) <= 10_000 < (count + 1) * round(share * 10_000)
    pool = Cluster(local=False, cpus=640, real_cpus=640, gpus=8, nodes=9, address="10.0.0.1:6379")
    assert concurrency(Demand(cpus=1, gpus=share, data_cpus=0), pool, max_gpus=None) == 8 * count


def test_a_run_is_on_one_gpu_alone() -> None:
    pool = Cluster(local=False, cpus=640, real_cpus=640, gpus=2, nodes=3, address="10.0.0.1:6379")
    for gpus, most, at_a_time in ((0.4, None, 4), (0.5, 1.5, 3), (0.6, None, 2), (1.0, None, 2), (2.0, None, 1)):
        assert concurrency(Demand(cpus=1, gpus=gpus, data_cpus=0), pool, max_gpus=most) == at_a_time


def test_the_choice_says_what_it_rests_on() -> None:
    share = chosen(found(), cpus_each=1)
    assert (share.gpus, share.auto, share.measured) == (0.25, True, found())
    assert share.text == (
        "0.25 GPU per run: measured, base takes 4.00 GiB of 100.00 GiB of a H200 and keeps it busy 25% of the time; limited by "
        "time"
    )
    assert chosen(found(cpus=2.0), cpus_each=1).why.endswith("limited by CPUs")
    assert chosen(found(), cpus_each=1, runs_per_gpu=3).why.endswith("limited by the number of runs")
    assert "limited" not in chosen(found(busy=0.1), cpus_each=1).why
    assert GpuShare.from_json(share.to_json(), "sweep.json") == share


def test_kernels_that_could_not_be_timed_leave_a_whole_gpu() -> None:
    share = chosen(found(busy=None), cpus_each=1)
    assert share.gpus == 1 and "how long its kernels run could not be measured" in share.why
    assert whole("it is so").text == "1 GPU per run: a whole one, as it is so"
