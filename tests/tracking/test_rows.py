"""Rows of ``metrics.jsonl`` are what a run has logged, or the file is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ltcore.errors import DamagedFileError
from ltcore.tracking.jsonl_sink import JsonlTracker, read_metrics, write_metrics


def test_rows_come_back_as_logged_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log({"epoch": 1, "val/top1": 0.5, "val/few": None}, 3)
    tracker.finish({}, "finished")
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "val/to')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"epoch": 1, "val/top1": 0.5, "val/few": None, "step": 3}]
    assert read_metrics(tmp_path / "nothing.jsonl") == []


def test_a_row_is_on_the_disk_before_anything_counts_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, synced = JsonlTracker(tmp_path), list[bytes]()
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "metrics.jsonl").read_bytes()))
    for step in (3, 6):
        tracker.log({"epoch": step // 3}, step)
    assert synced == [b'{"epoch": 1, "step": 3}\n', b'{"epoch": 1, "step": 3}\n{"epoch": 2, "step": 6}\n']


@pytest.mark.parametrize(("resume_step", "lost"), [(6, ""), (4, "4 to 4"), (12, "7 to 12")])
def test_rows_that_a_checkpoint_is_ahead_of_are_said(
    tmp_path: Path, resume_step: int, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_metrics(tmp_path / "metrics.jsonl", [{"step": 3}, {"step": 6}])
    JsonlTracker(tmp_path, resume_step)
    assert [record.getMessage() for record in caplog.records] == (
        [
            f"{tmp_path / 'metrics.jsonl'} has no row of steps {lost}, which the checkpoint contains. The run "
            "goes on without them."
        ]
        if lost
        else []
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"epoch": 1}', "step is None, expected a whole number"),
        ('{"step": 1.5}', "step is 1.5, expected a whole number"),
        ('{"step": true}', "step is True, expected a whole number"),
        ('{"step": 3, "epoch": "1"}', "epoch is '1', expected a whole number"),
        ('{"step": 3, "epoch": -1}', "epoch is -1, expected a whole number"),
        ('{"step": 3, "val/top1": "0.5"}', "val/top1 is '0.5', expected a number"),
        ('{"step": 3, "val/top1": NaN}', "val/top1 is nan, expected a number"),
        ('{"step": 3, "val/top1": 1e999}', "val/top1 is inf, expected a number"),
        ('{"step": 3, "val/top1": [0.5]}', r"val/top1 is \[0.5\], expected a number"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(DamagedFileError, match=rf"metrics\.jsonl, row 2: {problem}. It is damaged"):
        JsonlTracker(tmp_path, resume_step=9)
