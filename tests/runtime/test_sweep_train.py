"""A real sweep through Ray Train: two workers a trial, and a stop by ASHA."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.sweeps import runs, tune

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_the_train_engine_sweeps_with_two_workers_a_trial(color_shards: str, tmp_path: Path) -> None:
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
    assert trials[1e-9]["status"] == "stopped"
    records = runs(tmp_path, "trials")
    assert all(record["world"] == 2 and record["engine"] == "train" for record in records.values())
    for trial in trials.values():
        offline = list((tmp_path / "small" / trial["run_dir"] / "wandb").glob("offline-run-*"))
        assert len(offline) == 1
