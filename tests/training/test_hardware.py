"""How many CPUs a run takes: what the scheduler, the cgroup and the user allow, whichever is least."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import ltcore
from ltcore.cli import train as cli_train
from ltcore.training.context import LocalContext
from ltcore.training.hardware import allocated_cpus, compute_float32_exactly, wished_cpus
from ltcore.training.record import RunInfo
from ltcore.training.run import Job, execute
from tests.training.runs import tiny_run

FREE = {"train.threads": None, "train.epochs": 1}


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_float32_is_not_rounded_on_a_gpu_and_nothing_is_touched_for_a_cpu() -> None:
    owners: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [owner.allow_tf32 for owner in owners]
    try:
        for owner in owners:
            owner.allow_tf32 = True
        compute_float32_exactly(torch.device("cpu"))
        assert all(owner.allow_tf32 for owner in owners)
        compute_float32_exactly(torch.device("cuda"))
        assert not any(owner.allow_tf32 for owner in owners)
    finally:
        for owner, value in zip(owners, before, strict=True):
            owner.allow_tf32 = value


def test_the_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert allocated_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("value", "threads"), [(None, 4), ("", 4), ("2", 2), ("8", 4), ("3,1", 3), ("0", 4), ("all", 4), (" 1 ", 1)]
)
def test_the_smaller_of_wish_and_allowance(
    value: str | None, threads: int, four_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert wished_cpus() == threads


@pytest.mark.parametrize(("on_cluster", "key", "threads"), [(False, None, 2), (True, None, 4), (False, 3, 3)])
def test_a_run_in_this_process_keeps_to_it(
    on_cluster: bool,
    key: int | None,
    threads: int,
    four_cpus: None,
    tiny_shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`ray submit` sets the variable on the head of a cluster, where it says nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(cli_train, "on_cluster_node", lambda: on_cluster)
    before = torch.get_num_threads()
    cfg = tiny_run().replace({**FREE, "train.threads": key})
    record = ltcore.train(cfg, data=tiny_shards, storage=tmp_path, engine="inline", verbose=False).record
    assert record.threads == threads
    assert torch.get_num_threads() == before, "the caller's own code goes on as before"


def test_a_worker_takes_no_more_than_its_process_may_use(
    four_cpus: None, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray does
    before = torch.get_num_threads()
    try:
        for cpus, threads in ((3, 3), (8, 4)):
            cfg, info = tiny_run().replace(FREE), RunInfo(id="x")
            job = Job(
                config=cfg.to_dict(), data_uri=tiny_shards, run_uri=str(tmp_path / str(cpus)), info=info, cpus=cpus
            )
            assert execute(job, LocalContext(torch.device("cpu"))).threads == threads
    finally:
        torch.set_num_threads(before)
