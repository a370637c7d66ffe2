"""What may happen to a sweep on its way: a trial that fails, a time limit, more trials afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.sweeps import arguments, runs, tune

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("one_ray")]

QUICK = {"sweep__retrain_seeds": "0", "tracking__wandb": "false", "tracking__tensorboard": "false"}
RANDOM = {"sweep__search": "random", "sweep__space__train__optim__lr": "log:0.01,0.1", "sweep__grace_fraction": "1"}


def stored(storage: Path) -> dict[str, Any]:
    return json.loads((storage / "small" / "sweep.json").read_text())


def test_a_trial_that_fails_is_reported_and_does_not_end_the_sweep(
    color_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**QUICK, "sweep__space__train__optim__lr": "grid:0.05,1e30"}
    result = tune(color_shards, tmp_path, train__epochs="3", **changes)
    trials = {t["params"]["train.optim.lr"]: t for t in result["trials"]}
    assert (result["status"], trials[0.05]["status"], trials[1e30]["status"]) == ("finished", "finished", "failed")
    assert trials[1e30]["reason"].startswith("NumericError: Step ")
    assert result["winner"] == trials[0.05]["id"]
    said = capsys.readouterr().out
    assert f"trial {trials[1e30]['id']}: " in said and "failed (NumericError: Step" in said
    assert "NumericError" in (tmp_path / "small" / "report.html").read_text()


def test_a_time_limit_ends_with_a_report_and_the_same_command_goes_on(color_shards: str, tmp_path: Path) -> None:
    changes = {**QUICK, **RANDOM, "sweep__num_trials": "2", "train__epochs": "30"}
    cut = tune(color_shards, tmp_path, "--max-hours", "0.0015", "--cpus-per-worker", "2", **changes)
    assert cut["status"] == "stopped"
    assert len([t for t in cut["trials"] if t["status"] == "finished"]) < 2
    assert (tmp_path / "small" / "report.html").exists()
    done = tune(color_shards, tmp_path, "--cpus-per-worker", "2", **changes)
    assert done["status"] == "finished"
    assert [t["status"] for t in done["trials"]] == ["finished"] * 2
    assert done["stages"]["search"] > cut["stages"]["search"]


def test_trials_can_be_added_to_a_finished_sweep(color_shards: str, tmp_path: Path) -> None:
    changes = {**QUICK, **RANDOM, "train__epochs": "2"}
    first = tune(color_shards, tmp_path, sweep__num_trials="2", **changes)
    started = {name: record["started_at"] for name, record in runs(tmp_path, "trials").items()}
    more = tune(color_shards, tmp_path, sweep__num_trials="5", **changes)
    assert (first["status"], more["status"], len(more["trials"])) == ("finished", "finished", 5)
    assert more["trials"][:2] == first["trials"]
    again = {name: record["started_at"] for name, record in runs(tmp_path, "trials").items()}
    assert {name: again[name] for name in started} == started, "what was there is not computed again"
    assert stored(tmp_path)["sizes"] == [2, 5]


def test_a_killed_driver_loses_nothing(color_shards: str, tmp_path: Path) -> None:
    """SIGKILL after the first trial; the same command ends the sweep without computing that trial again."""
    changes = {**QUICK, **RANDOM, "sweep__num_trials": "4", "train__epochs": "12"}
    words = arguments(color_shards, tmp_path, **changes)
    environment = {**os.environ, "LTCORE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "pipelines" / "tune_lpa.py"), *words]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            done = [r for r in runs(tmp_path, "trials").values() if r["kind"] == "trial" and r["status"] == "finished"]
            if done or child.poll() is not None:
                break
            time.sleep(0.5)
    finally:
        child.kill()
        child.wait()
    assert len(done) in (1, 2, 3), "killed while trials were left"
    assert stored(tmp_path)["status"] == "running"
    result = tune(color_shards, tmp_path, **changes)
    assert (result["status"], [t["status"] for t in result["trials"]]) == ("finished", ["finished"] * 4)
    after = runs(tmp_path, "trials")
    for record in done:
        name = record["id"].rsplit("-", 1)[-1]
        assert after[name]["started_at"] == record["started_at"]
