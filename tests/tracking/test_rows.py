"""Rows of ``metrics.jsonl`` are what a run has logged, or the file is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore.errors import DamagedFileError
from ltcore.tracking.jsonl_sink import JsonlTracker, read_metrics


def test_rows_come_back_as_logged_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log({"epoch": 1, "val/top1": 0.5, "val/few": None}, 3)
    tracker.finish({}, "finished")
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "val/to')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"epoch": 1, "val/top1": 0.5, "val/few": None, "step": 3}]
    assert read_metrics(tmp_path / "nothing.jsonl") == []


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
