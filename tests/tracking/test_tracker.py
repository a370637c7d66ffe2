"""JSON lines and TensorBoard: what is logged is what is read back, also after a kill and a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltcore.errors import NumericError
from ltcore.storage import read_jsonl
from ltcore.tracking.base import FanOut, Tracker
from ltcore.tracking.config import TrackingConfig
from ltcore.tracking.jsonl_sink import JsonlTracker
from ltcore.tracking.tracker import open_tracker
from tests.tracking.events import read_events


def open_run(run_dir: Path, **changes: Any) -> Tracker:
    arguments: dict[str, Any] = {
        "run_dir": run_dir,
        "run_id": "run-1",
        "group": "sweep",
        "name": "a run",
        "config_flat": {"optim.lr": 0.1},
        "options": TrackingConfig(wandb=False, tensorboard=False),
    }
    return open_tracker(**(arguments | changes))


def log_epochs(tracker: Tracker, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        tracker.log({"epoch": epoch, "val/top1": epoch / 7, "val/few": None}, step=10 * epoch)


def test_lines_are_complete_before_the_run_ends(tmp_path: Path) -> None:
    tracker = open_run(tmp_path / "run")
    log_epochs(tracker, 1, 2)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows == [
        {"epoch": 1, "val/top1": 1 / 7, "val/few": None, "step": 10},
        {"epoch": 2, "val/top1": 2 / 7, "val/few": None, "step": 20},
    ]
    tracker.finish({}, "finished")


@pytest.mark.parametrize(("resume_step", "epochs"), [(20, [1, 2, 3, 4]), (0, [3, 4])])
def test_resume_has_no_epoch_twice(tmp_path: Path, resume_step: int, epochs: list[int]) -> None:
    log_epochs(open_run(tmp_path), 1, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "val/t')  # killed while writing
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 3
    log_epochs(open_run(tmp_path, resume_step=resume_step), 3, 4)
    assert [row["epoch"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == epochs
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = open_run(tmp_path / "run", rank=1, options=TrackingConfig())
    assert type(tracker) is Tracker
    log_epochs(tracker, 1, 1)
    tracker.table("t", ["a"], [[1]])
    tracker.html("report", tmp_path / "none.html")
    tracker.finish({}, "finished")
    assert list(tmp_path.iterdir()) == []


def test_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match="train/loss is nan at step 7"):
        open_run(tmp_path).log({"epoch": 1, "train/loss": float("nan")}, step=7)
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_a_later_table_replaces_the_earlier(tmp_path: Path) -> None:
    tracker = open_run(tmp_path)
    for accuracy in (0.1, 0.2):
        tracker.table("per_class/test", ["class", "accuracy"], [["zero", accuracy], ["one", None]])
    stored = json.loads((tmp_path / "tables" / "per_class.test.json").read_text())
    assert stored == {"columns": ["class", "accuracy"], "rows": [["zero", 0.2], ["one", None]]}


def test_tensorboard_files_hold_the_scalars(tmp_path: Path) -> None:
    tracker = open_run(tmp_path, options=TrackingConfig(wandb=False))
    log_epochs(tracker, 1, 2)
    tracker.finish({}, "finished")
    events = read_events(tmp_path / "tensorboard")
    scalars = [(value.tag, event.step, value.simple_value) for event in events for value in event.summary.value]
    assert ("epoch", 10, 1.0) in scalars
    assert [(tag, step) for tag, step, _ in scalars if tag == "val/top1"] == [("val/top1", 10), ("val/top1", 20)]
    assert not any(tag == "val/few" for tag, _, _ in scalars)


def test_tensorboard_is_told_what_a_resumed_run_takes_back(tmp_path: Path) -> None:
    log_epochs(open_run(tmp_path), 1, 2)
    tracker = open_run(tmp_path, options=TrackingConfig(wandb=False), resume_step=10)
    log_epochs(tracker, 2, 2)
    start, *_ = (event for event in read_events(tmp_path / "tensorboard") if event.HasField("session_log"))
    assert (start.step, start.session_log.status) == (11, 1)


def test_charts_go_through_and_leave_the_record_alone(tmp_path: Path) -> None:
    """Of a chart the record holds the table, and the matrix is a file of its own."""
    heard = Heard()
    tracker = FanOut([JsonlTracker(tmp_path), heard])
    tracker.bars("test/last/recall", "class", "recall", [("ant", 0.5)])
    tracker.confusion("test/last/confusion", ["ant"], [[1]])
    assert heard.calls == ["test/last/recall", "test/last/confusion"]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


class Heard(Tracker):
    """A sink that remembers which charts it was given."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def bars(self, name: str, label: str, value: str, rows: Any) -> None:
        self.calls.append(name)

    def confusion(self, name: str, classes: Any, counts: Any) -> None:
        self.calls.append(name)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^wandb_mode must be one of auto"):
        TrackingConfig(wandb_mode="cloud")
