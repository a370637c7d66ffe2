"""A real sweep through Ray Train: two workers a trial, a stop at a rung, and a trial that goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tuning.sweeps import runs, tune

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("one_ray")]


def test_the_train_engine_sweeps_with_two_workers_a_trial(
    color_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.tuning.rungs.FINALISTS", 1)
    result = tune(
        color_shards,
        tmp_path,
        *("--engine", "train", "--workers", "2"),
        sweep__retrain_seeds="0",
        train__epochs="6",
        tracking__wandb_mode="offline",
    )
    trials = {t["params"]["train.optim.lr"]: t for t in result["trials"]}
    assert trials[0.05]["status"] == "finished"
    assert (trials[1e-9]["status"], trials[1e-9]["epochs_done"]) == ("stopped", 3)
    records = runs(tmp_path, "trials")
    assert all(record["world"] == 2 and record["engine"] == "train" for record in records.values())
    rows = (tmp_path / "small" / trials[0.05]["run_dir"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == list(range(1, 7))
    for trial in trials.values():
        offline = list((tmp_path / "small" / trial["run_dir"] / "wandb").glob("offline-run-*"))
        assert len(offline) == (2 if trial["status"] == "finished" else 1)  # one for each part, whatever the workers
