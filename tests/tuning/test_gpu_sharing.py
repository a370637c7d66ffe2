"""Trials of a sweep that share a GPU, on a Ray that counts one where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from ltcore.config.gpu_share import Occupancy
from ltcore.config.records import RunRecord, SweepRecord
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import read_sweep
from ltcore.runtime import cluster, ray_occupancy
from ltcore.runtime.placement import Demand, Scaling
from ltcore.tuning import budget, gpu_sharing, search, sweep
from ltcore.tuning.search import SearchPlan
from tests.training.runs import tiny_run
from tests.tuning.sweeps import tune

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.skipif(torch.cuda.is_available(), reason="counts a GPU where there is none"),
    pytest.mark.usefixtures("one_gpu"),
]

QUICK = {
    "sweep__retrain_seeds": "0",
    "tracking__wandb": "false",
    "tracking__tensorboard": "false",
    "train__epochs": "1",
    "sweep__search": "random",
    "sweep__num_trials": "2",
    "sweep__space__train__optim__lr": "log:0.01,0.1",
    "sweep__grace_fraction": "1",
}
SMALL = Occupancy(device="T4", run="the recipe", peak_bytes=2**30, device_bytes=2**34, busy=0.3, cpus=4, gpus=1)


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", partial(ray.init, num_gpus=1))
        made = cluster.connect()
        patch.setattr(cluster, "connect", lambda debug=False: dataclasses.replace(made, real_cpus=4))
        patch.setattr(cluster, "disconnect", lambda: None)
        yield
    cluster.disconnect()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """What each search asked of Ray for a trial."""
    found: list[dict[str, float]] = []
    given = search.tune.with_resources

    def note(trainable: Any, resources: dict[str, float]) -> Any:
        found.append(resources)
        return given(trainable, resources)

    monkeypatch.setattr(search.tune, "with_resources", note)
    return found


def give(monkeypatch: pytest.MonkeyPatch, measured: Occupancy) -> list[Sequence[RunConfig]]:
    """Puts this in the place of what would be measured; returns the runs that it is asked of."""
    runs: list[Sequence[RunConfig]] = []

    def measure(of: Sequence[RunConfig], *_: Any, **__: Any) -> Occupancy:
        runs.append(of)
        return measured

    monkeypatch.setattr(gpu_sharing, "measure_on_node", measure)
    return runs


@pytest.mark.slow
def test_trials_share_a_gpu_until_the_part_is_too_small_for_one(
    color_shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: list[dict[str, float]],
) -> None:
    measured = give(monkeypatch, SMALL)
    run_course, report = sweep.run_course, tmp_path / "small" / "report.html"
    stored: list[Any] = []

    def run_and_starve(plan: SearchPlan, *rest: Any) -> None:
        """Leaves a trial that had a part of a GPU as an error of memory would have."""
        run_course(plan, *rest)
        stored.append(SweepRecord.read(tmp_path / "small"))
        if plan.trial.scaling.gpus_per_worker < 1:
            folder = tmp_path / "small" / "trials" / "00001"
            record = RunRecord.read(folder)
            assert record is not None and record.status == "finished"
            dataclasses.replace(record, status="failed", reason="full", retryable=True, short_of_gpu=0.3333).write(
                folder
            )

    monkeypatch.setattr(sweep, "run_course", run_and_starve)
    result = tune(color_shards, tmp_path, **QUICK)
    said = capsys.readouterr().out
    assert "0.3333 GPU per run: measured, the recipe takes 1.00 GiB of 16.00 GiB of a T4 and keeps it busy 30%" in said
    assert "; limited by time and the number of runs; one takes 1 CPU and 0.3333 GPUs; 3 at a time" in said
    assert stored[0].gpu_share.gpus == 0.3333 and stored[0].gpu_share.measured == SMALL
    assert asked == [{"CPU": 1, "GPU": 0.3333}, {"CPU": 1, "GPU": 1.0}]
    assert len(measured) == 1 and len(measured[0]) > 1, "every kind of run is offered"
    words = "1 GPU per run: a whole one, as 0.3333 was too small for trial-00001"
    assert words in said and words in report.read_text()
    assert result["gpu_share"]["gpus"] == 1 and result["status"] == "finished"
    assert {trial["status"] for trial in result["trials"]} == {"finished"}


def test_a_node_without_what_was_promised_is_no_place_to_measure(color_shards: str) -> None:
    made, whole = cluster.connect(), Scaling(gpus_per_worker=1.0)
    with pytest.raises(ray_occupancy.NotMeasuredError, match="torch finds no GPU on the node that Ray gave one of"):
        ray_occupancy.measure_on_node([tiny_run()], color_shards, scaling=whole, cluster=made, say=print)


@pytest.mark.slow
def test_the_speed_of_a_trial_on_a_gpu_is_measured_in_another_process(
    color_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(*_: Any, **__: Any) -> float:
        raise AssertionError("this process would keep memory of the GPU")

    scaling = Scaling(gpus_per_worker=0.5)
    parts = {
        "base": tiny_run(),
        "data_uri": color_shards,
        "placement": SimpleNamespace(scaling=scaling, demand=Demand(1, 0.5, 0)),
    }
    setup: Any = SimpleNamespace(sweep=read_sweep("tune_lpa"), **parts)
    monkeypatch.setattr(budget, "images_per_s", here)
    assert budget._rate(setup, print) > 0
