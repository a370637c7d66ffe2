"""Which part of a GPU the runs of a sweep get: given, kept, measured, or a whole one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ltcore.cli.parsers import read_tune
from ltcore.config.gpu_share import Occupancy
from ltcore.config.json_record import RecordFile
from ltcore.config.load import base_run
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import read_sweep
from ltcore.errors import ConfigError, GpuShareError
from ltcore.runtime.autoscaler import Limits
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.gpu_share import whole
from ltcore.runtime.placement import Placement, choose_scaling
from ltcore.runtime.progress import ProgressDisplay
from ltcore.runtime.ray_occupancy import NotMeasuredError
from ltcore.tuning import sweep as sweeps
from ltcore.tuning import variants
from ltcore.tuning.gpu_sharing import shared
from ltcore.tuning.runs import SweepSetup
from ltcore.tuning.sweep import Sweep
from ltcore.tuning.variants import VariantSweep
from tests.records import run_record, sweep_record

WORKSTATION = Cluster(local=True, cpus=16, real_cpus=16, gpus=1, nodes=1, address="")
LAPTOP = Cluster(local=True, cpus=4, real_cpus=2, gpus=0, nodes=1, address="")
GROWING = Cluster(
    local=False, cpus=4, real_cpus=4, gpus=0, nodes=1, address="h:1", limits=Limits(cpus=68, gpus=8, cpus_per_gpu=8)
)
SMALL = Occupancy(device="T4", run="the recipe", peak_bytes=2**30, device_bytes=2**34, busy=0.3, cpus=8, gpus=1)


class Measure:
    """Stands for the measuring of steps."""

    def __init__(self, found: Occupancy | None = SMALL) -> None:
        self.found, self.times = found, 0

    def __call__(self, runs: Sequence[RunConfig], data_uri: str) -> Occupancy:
        self.times += 1
        if self.found is None:
            raise NotMeasuredError("it is so")
        return self.found


def choose(
    *flags: str, cluster: Cluster = WORKSTATION, stored: Any = None, measure: Measure | None = None, **keys: str
) -> SweepSetup:
    args = read_tune("test", [*flags, "--storage", "s3://bucket/runs"])
    sweep = read_sweep("tune_lpa", {f"sweep.{key}": value for key, value in keys.items()})
    base = base_run(sweep)
    placement = Placement.decide(args, cluster, "s3://bucket/runs", base)
    setup = SweepSetup(
        sweep=sweep,
        base=base,
        num_trials=sweep.size,
        seed=0,
        data_uri="data",
        data_hash="",
        uri="s3://bucket/runs/demo",
        cluster=cluster,
        placement=placement,
        unshared=placement,
        images_per_epoch=64,
        max_hours=None,
        debug=False,
    )
    return shared(setup, args, [base], stored, ProgressDisplay(), measure or Measure())


def test_a_sweep_shares_by_default_and_where_it_is_asked_to() -> None:
    for flags in ((), ("--gpus-per-worker", "auto")):
        found = choose(*flags)
        assert found.gpu_share is not None and found.gpu_share.measured == SMALL
        assert (found.placement.scaling.gpus_per_worker, found.placement.concurrent) == (0.3333, 3)
        assert found.unshared.scaling.gpus_per_worker == 1 and found.chose_part
        assert found.with_whole_gpus("x").placement == found.unshared and not found.with_whole_gpus("x").chose_part


def test_on_nodes_to_come_their_cpus_go_with_the_part() -> None:
    found = choose(cluster=GROWING, measure=Measure(dataclasses.replace(SMALL, busy=0.5)))
    assert found.placement.scaling.gpus_per_worker == 0.5 and found.placement.scaling.cpus_per_worker == 2
    assert found.placement.concurrent == 16


def test_what_is_given_or_stored_is_not_measured() -> None:
    measure = Measure()
    given = choose("--gpus-per-worker", "0.5", measure=measure)
    assert given.gpu_share is not None and given.gpu_share.text == "0.5 GPU per run: as --gpus-per-worker says"
    assert not given.chose_part and given.placement.concurrent == 2
    for earlier in (choose().gpu_share, whole("0.25 was too small for trial-00001", SMALL)):
        assert earlier is not None
        kept = choose(stored=sweep_record(gpu_share=earlier), measure=measure)
        assert (kept.gpu_share, kept.placement.scaling.gpus_per_worker) == (earlier, earlier.gpus)
    assert measure.times == 0
    assert choose(stored=sweep_record(gpu_share=given.gpu_share), measure=measure).chose_part
    assert choose(stored=sweep_record(), measure=measure).chose_part and measure.times == 2
    unmeasured = choose(stored=sweep_record(gpu_share=whole("no measurement came")), measure=measure)
    assert unmeasured.chose_part and measure.times == 3, "what failed in passing is tried again"


def test_without_a_gpu_nothing_changes() -> None:
    measure = Measure()
    for flags, cluster in (
        ((), LAPTOP),
        (("--gpus-per-worker", "auto"), LAPTOP),
        (("--gpus-per-worker", "0"), WORKSTATION),
    ):
        found = choose(*flags, cluster=cluster, measure=measure)
        assert found.gpu_share is None and found.placement == found.unshared
    assert measure.times == 0


@pytest.mark.parametrize(
    ("flags", "cluster", "words"),
    [
        (("--workers", "2"), dataclasses.replace(WORKSTATION, gpus=2), "runs on Ray Train do not share"),
        (("--engine", "train"), WORKSTATION, "runs on Ray Train do not share"),
        ((), dataclasses.replace(WORKSTATION, gpus=9), "there are as many GPUs as runs"),
    ],
)
def test_who_gets_a_whole_gpu_unmeasured(flags: tuple[str, ...], cluster: Cluster, words: str) -> None:
    measure = Measure()
    found = choose(*flags, cluster=cluster, measure=measure)
    assert found.gpu_share is not None and words in found.gpu_share.why and found.gpu_share.gpus == 1
    assert measure.times == 0


def test_two_gpus_for_three_runs_are_not_cut_into_eighths() -> None:
    found = choose(cluster=dataclasses.replace(WORKSTATION, gpus=2), num_trials="3", budget_s="null")
    assert found.gpu_share is not None and found.gpu_share.gpus == 0.5
    assert found.gpu_share.why.endswith("limited by the number of runs")


def test_a_measurement_that_fails_is_said() -> None:
    found = choose(measure=Measure(None))
    assert found.gpu_share is not None and found.gpu_share.text == "1 GPU per run: a whole one, as it is so"


def test_auto_is_for_one_process_per_trial() -> None:
    args = read_tune("test", ["--gpus-per-worker", "auto", "--workers", "2"])
    with pytest.raises(ConfigError, match=r"^--gpus-per-worker auto is for a sweep with --engine trial"):
        choose_scaling(args, WORKSTATION, "train")


def test_a_part_that_was_too_small_for_a_retrain_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no second try within the command has one in the next."""
    setup = choose()

    class Bare(Sweep):
        def __init__(self) -> None:
            self.setup, self.display = setup, ProgressDisplay()
            self.file = RecordFile(None, sweep_record(gpu_share=setup.gpu_share))
            self.watch: Any = Mock()
            self.meter: Any = Mock(most_nodes=0, **{"hours.return_value": {}})
            self.runs: Any = Mock()

        def _stages(self) -> None:
            raise GpuShareError("0.3333 of the memory of cuda:0 is too little")

    monkeypatch.setattr(sweeps, "check_held", lambda _: None)
    bare = Bare()
    with pytest.raises(GpuShareError):
        bare.run()
    assert bare.record.status == "failed" and bare.record.gpu_share == whole(
        "0.3333 was too small for another run", SMALL
    )


def test_variants_that_find_their_part_too_small_go_on_with_whole_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = dataclasses.replace(choose(), uri=str(tmp_path))
    had: list[float] = []

    class Bare(VariantSweep):
        def __init__(self) -> None:
            self.setup, self.display = setup, Mock()
            self.file = RecordFile(None, sweep_record(gpu_share=setup.gpu_share))
            self.watch: Any = Mock()
            self.meter: Any = Mock(most_nodes=0, **{"hours.return_value": {}})
            self.runs: Any = Mock()
            self.display.stages = {}
            self._lost = {}

        def _plan(self) -> Any:
            return self.setup.placement.scaling.gpus_per_worker

    def train(gpus: float, *_: Any) -> None:
        had.append(gpus)
        short = {"status": "failed", "retryable": True, "short_of_gpu": gpus} if gpus < 1 else {"status": "finished"}
        run_record(name="trial-a", **short).write(tmp_path / "trials" / "a")

    monkeypatch.setattr(variants, "run_course", train)
    monkeypatch.setattr(sweeps, "check_held", lambda _: None)
    bare = Bare()
    bare._train(0, {"a": {}}, is_stage2=False)
    assert had == [0.3333, 1.0]
    assert bare.record.gpu_share == whole("0.3333 was too small for trial-a", SMALL) and not bare.setup.chose_part
    assert bare.runs.setup == bare.setup, "what is trained after it has whole GPUs too"
