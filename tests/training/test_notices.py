"""A run that is told that its workers end: it saves at once, leaves, and goes on without repeating an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ltcore.config.records import Notice, RunRecord, Start, now
from ltcore.config.schema import RunConfig
from ltcore.reporting.page import machine
from ltcore.reporting.records import StoredRun
from ltcore.training import pace
from ltcore.training import trainer as fit
from ltcore.training.context import Interrupted
from tests.ddp import run_ranks
from tests.records import run_record
from tests.training.runs import TERMS, Rank, Told, WholeRun, assert_equal_runs, run, tiny_run


@pytest.mark.parametrize("question", [0, 1, 2, 4])  # inside an epoch of 5 steps and at its end
def test_a_notice_costs_no_image_and_no_bit(
    tiny_shards: str, whole_run: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: int
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 2)
    cfg = tiny_run(**TERMS, train__checkpoint_every_s=1000.0)
    whole = whole_run(cfg)
    with pytest.raises(Interrupted):
        run(cfg, tiny_shards, tmp_path / "told", Told(question))
    left = RunRecord.read(tmp_path / "told")
    assert left is not None and left.starts is not None
    assert left.status == "running", "neither stopped nor failed: it goes on"
    assert left.starts[0].left_at == 8 * [2, 4, 5, 8][[0, 1, 2, 4].index(question)]
    run(cfg, tiny_shards, tmp_path / "told")
    record = RunRecord.read(tmp_path / "told")
    assert record is not None and record.starts is not None
    assert record.starts[1].images_seen == record.starts[0].left_at
    assert (record.status, record.preemptions, record.worlds) == ("finished", (0,), (1,))
    assert_equal_runs(whole, tmp_path / "told")


def _on_two_ranks(tree: dict[str, Any], uri: str, folder: str) -> None:
    cfg, runs = RunConfig.from_dict(tree), Path(folder)
    run(cfg, uri, runs / "whole", Rank())
    often, fit.DECIDE_EVERY = fit.DECIDE_EVERY, 2
    try:
        with pytest.raises(Interrupted):
            run(cfg, uri, runs / "told", Told(3, "resize"))
    finally:
        fit.DECIDE_EVERY = often
    run(cfg, uri, runs / "told", Rank())


def test_all_ranks_leave_together(tiny_shards: str, tmp_path: Path) -> None:
    run_ranks(_on_two_ranks, 2, tiny_run(**TERMS, train__threads=1).to_dict(), tiny_shards, str(tmp_path))
    assert_equal_runs(tmp_path / "whole", tmp_path / "told")
    record = RunRecord.read(tmp_path / "told")
    assert record is not None and record.starts is not None
    assert [(start.world, start.notice) for start in record.starts] == [(2, "resize"), (2, None)]
    assert record.preemptions == (), "a resize is none"


@pytest.mark.parametrize(("save_s", "every_s"), [(0.001, 30.0), (0.3, 30.0), (2.0, 200.0), (480.0, 1800.0)])
def test_checkpoints_take_one_percent_of_the_time_unless_one_had_to_wait_long(
    save_s: float, every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    own = pace.SavePace(None)
    own.took(save_s)
    clock[0] += every_s - 1
    assert not own.late
    clock[0] += 2
    assert own.late
    own.tried(saved=True)
    assert not own.late and own.saving_s == save_s
    assert pace.SavePace(5.0)._every_s == 5.0


def start(images: int, world: int, notice: Notice | None = None, left_at: int | None = None) -> Start:
    return Start(images_seen=images, world=world, host="node", at=now(), notice=notice, left_at=left_at)


def test_the_report_tells_of_workers_and_of_what_preemptions_cost() -> None:
    history = (start(0, 1, "resize", 64), start(64, 2, "preemption", 128), start(120, 2), start(200, 1))
    record = run_record(starts=history)
    assert RunRecord.from_json(record.to_json(), "run.json") == record
    assert record.worlds == (1, 2, 1)
    assert record.preemptions == (8,), "the notice was heeded at 128 images, and the run went on from 120"
    rows = dict(machine([StoredRun(Path(), record, []), StoredRun(Path(), run_record(), [])], None))
    assert rows["workers"] == "1, then 2, then 1 / 1"
    assert rows["preemptions"] == "1 announced, 8 images trained on again"
    assert "preemptions" not in dict(machine([StoredRun(Path(), run_record(), [])], None))
