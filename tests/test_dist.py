"""Ranks that wait for each other."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as td

from ltcore import dist
from ltcore.retry import listeners, still_here
from ltcore.training.record import RunInfo
from ltcore.training.run import Job, execute, make_local_loader
from tests.ddp import run_ranks
from tests.training.runs import Rank, tiny_run

LATE_S = 3.0


def meet_twice() -> list[int]:
    looks = []
    for late in (1, 0):
        looks.append(0)

        def look() -> None:
            looks[-1] += 1

        listeners["test"] = look
        with dist.meeting():
            if dist.rank() == late:
                time.sleep(4 * dist.LOOK_S)
    del listeners["test"]
    return looks


def test_who_is_early_looks_around_until_all_are_there() -> None:
    first, second = run_ranks(meet_twice, 2)
    assert first[0] >= 3 and first[1] <= 1 and second[0] <= 1 and second[1] >= 3


def meet_where_one_is_slow(works: bool) -> str:
    """Rank 1 takes longer than a rank may be silent, and says so meanwhile, or not."""
    dist.SILENCE_S, dist.SIGN_S = 1.5, 0.1
    try:
        with dist.meeting():
            for _ in range(30 * dist.rank()):
                time.sleep(0.1)
                if works:
                    still_here()
    except RuntimeError as error:
        return str(error)
    finally:
        dist.SILENCE_S, dist.SIGN_S = 1800.0, 5.0
    return "met"


def test_a_rank_that_works_is_waited_for_and_one_that_hangs_is_not() -> None:
    assert run_ranks(meet_where_one_is_slow, 2, True) == ["met", "met"]
    early, late = run_ranks(meet_where_one_is_slow, 2, False)
    assert early.startswith("Rank 1 has said nothing of its data for 2 s") and late == "met"


def meet_where_one_fails() -> str:
    try:
        with dist.meeting():
            if dist.rank() == 1:
                raise ValueError("no data here")
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "met"


def test_a_rank_that_fails_before_ends_the_waiting_of_the_others() -> None:
    assert run_ranks(meet_where_one_fails, 2) == [
        "Another rank failed before all had met, so this rank stops as well.",
        "no data here",
    ]


def train_with_a_late_rank(uri: str, folder: str) -> str:
    """Collectives give up before the late rank has its images."""
    cfg = tiny_run(train__epochs=1)
    job = Job(config=cfg.to_dict(), data_uri=uri, run_uri=folder, info=RunInfo(id="run", test=False))

    def make_late(*args: Any) -> Any:
        time.sleep(LATE_S * dist.rank())
        return make_local_loader(*args)

    td.distributed_c10d._set_pg_timeout(timedelta(seconds=LATE_S / 2), td.group.WORLD)
    try:
        return execute(job, Rank(), make_late).status
    finally:
        td.distributed_c10d._set_pg_timeout(timedelta(minutes=30), td.group.WORLD)


def test_a_node_that_has_yet_to_decode_is_waited_for(tiny_shards: str, tmp_path: Path) -> None:
    assert run_ranks(train_with_a_late_rank, 2, tiny_shards, str(tmp_path / "run")) == ["finished"] * 2


def test_alone_nobody_waits() -> None:
    with pytest.raises(ValueError, match="of the block"), dist.meeting():
        raise ValueError("of the block")
