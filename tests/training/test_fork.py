"""A run that starts from another's checkpoint has its rows, too, whenever it is killed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.config.schema import RunConfig
from ltcore.tracking.tensorboard_sink import TensorBoardSink
from ltcore.training import fork
from ltcore.training import run as runs
from ltcore.training.context import LocalContext, StopRequested
from ltcore.training.record import RunInfo
from ltcore.training.run import Job, execute
from tests.training.runs import run, tiny_run

CFG = tiny_run().replace({"tracking.tensorboard": True})


def forking(cfg: RunConfig, uri: str, folder: Path) -> Job:
    """The run in ``folder / "run"``, which starts from that in ``folder / "source"``."""
    return Job(
        config=cfg.to_dict(),
        data_uri=uri,
        run_uri=str(folder / "run"),
        info=RunInfo(id="run"),
        fork_of=str(folder / "source"),
    )


class Killed(BaseException):
    """Nothing of ours catches it."""


@pytest.mark.parametrize(
    "moment", ["before the checkpoint is there", "before sinks are open", "before rows are shown", ""]
)
def test_a_run_that_forks_has_the_rows_of_what_it_starts_from(
    moment: str, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StopRequested):
        run(CFG, tiny_shards, tmp_path / "source", until=2)
    cfg = CFG.replace({"train.optim.lr": 0.01})
    job = forking(cfg, tiny_shards, tmp_path)
    ctx = LocalContext(torch.device("cpu"))

    def kill(*_: Any, **__: Any) -> Any:
        raise Killed

    shown: list[int] = []
    log = TensorBoardSink.log

    def note(self: TensorBoardSink, metrics: Any, step: int) -> None:
        shown.append(metrics["epoch"])
        log(self, metrics, step)

    monkeypatch.setattr(TensorBoardSink, "log", note)
    struck = {
        "before the checkpoint is there": (fork, "write_metrics"),
        "before sinks are open": (runs, "open_tracker"),
        "before rows are shown": (TensorBoardSink, "take_over"),
    }
    if moment:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(*struck[moment], kill)
            execute(job, ctx)
    execute(job, ctx)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (tmp_path / "source" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows[:3]] == [1, 2, 3] and rows[:2] == before and rows[2]["lr"] != before[1]["lr"]
    assert shown == [1, 2, 3], "the other sinks have them as well"
    execute(dataclasses.replace(job, config=cfg.replace({"train.epochs": 3}).to_dict()), ctx)
    assert shown == [1, 2, 3], "and once"


def test_without_a_checkpoint_to_start_from_a_run_begins_at_its_beginning(tiny_shards: str, tmp_path: Path) -> None:
    """The shared start's was left out on a full disk, say, or somebody has removed it."""
    (tmp_path / "source" / "checkpoints").mkdir(parents=True)
    job = forking(CFG, tiny_shards, tmp_path)
    forked = execute(job, LocalContext(torch.device("cpu")))
    assert forked.to_json()["test"] == run(CFG, tiny_shards, tmp_path / "alone")["test"]
