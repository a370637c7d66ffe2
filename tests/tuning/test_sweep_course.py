"""What may happen to a sweep on its way: a trial that fails, a time limit, more trials afterwards."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ltcore.errors import LtcoreError
from ltcore.runtime import cluster
from tests.paths import ROOT
from tests.tuning.sweeps import arguments, runs, tune

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("one_ray")]

QUICK = {"sweep__retrain_seeds": "0", "tracking__wandb": "false", "tracking__tensorboard": "false"}
RANDOM = {"sweep__search": "random", "sweep__space__train__optim__lr": "log:0.01,0.1", "sweep__grace_fraction": "1"}


def stored(storage: Path) -> dict[str, Any]:
    return json.loads((storage / "small" / "sweep.json").read_text())


@pytest.mark.slow
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


class Killer(threading.Thread):
    """SIGKILL for a trial's process, as the kernel sends it where memory is short, each time that it has begun to train."""

    def __init__(self, storage: Path, trial: str, times: int) -> None:
        super().__init__(daemon=True)
        self._storage, self._trial, self._times = storage, trial, times
        self.killed: set[int] = set()
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 300
        while len(self.killed) < self._times and time.monotonic() < deadline:
            record = runs(self._storage, "trials").get(self._trial, {"status": ""})
            if record["status"] == "running" and record["pid"] not in self.killed:
                os.kill(record["pid"], signal.SIGKILL)
                self.killed.add(record["pid"])
            time.sleep(0.02)


def give_slots(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Makes the sweeps from here on run ``count`` trials at a time, whatever the machine has."""
    found = cluster.connect()
    monkeypatch.setattr(cluster, "connect", lambda debug=False: dataclasses.replace(found, real_cpus=count))


@pytest.mark.slow
def test_neither_slots_nor_killed_processes_change_what_a_sweep_comes_to(
    color_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that dies is replaced; where that happens too often, there is no winner until the trial has run."""
    changes = {**QUICK, **RANDOM, "sweep__num_trials": "4", "sweep__grace_fraction": "null", "train__epochs": "8"}
    changes |= {"sweep__space__train__optim__lr": "log:1e-7,0.03", "train__eval_every": "2"}
    give_slots(monkeypatch, 1)
    one_slot = tune(color_shards, tmp_path / "one", **changes)
    give_slots(monkeypatch, 4)
    four_slots = tune(color_shards, tmp_path / "four", **changes)
    assert "; 4 at a time" in capsys.readouterr().out
    give_slots(monkeypatch, 2)
    monkeypatch.setattr("ltcore.tuning.sweep.LOST", 1)
    killer = Killer(tmp_path / "two", "00002", times=2)
    with pytest.raises(LtcoreError, match=r"1 of 4 trials of small failed .* without them: 00002 \(.*The same command"):
        tune(color_shards, tmp_path / "two", **changes)
    assert len(killer.killed) == 2
    assert "lost with its process" in capsys.readouterr().out
    left = stored(tmp_path / "two")
    assert (left["status"], left["rungs"], "winner" in left) == ("failed", [], False)
    assert not list((tmp_path / "two" / "small").rglob("*.pkl")), "nothing that would be unpickled"
    two_slots = tune(color_shards, tmp_path / "two", **changes)
    assert sorted(t["status"] for t in one_slot["trials"]) == ["finished"] * 3 + ["stopped"]
    for sweep in (two_slots, four_slots):
        assert [(t["params"], t["last"], t["best"]) for t in sweep["trials"]] == [
            (t["params"], t["last"], t["best"]) for t in one_slot["trials"]
        ]
        for key in ("winner", "rungs"):
            assert sweep[key] == one_slot[key]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_sweep_that_a_budget_cut_is_completed_without_one(
    color_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trials that were left out are added, and they are those of the whole sweep."""
    changes = {**QUICK, **RANDOM, "sweep__num_trials": "5", "train__epochs": "2"}
    cut = tune(color_shards, tmp_path, **{**changes, "sweep__budget_s": "0.001"})
    assert "the first 3 of them are run, at full length. For all: sweep.budget_s=null" in capsys.readouterr().out
    assert (cut["status"], cut["num_trials"], cut["cut_from"], len(cut["trials"])) == ("finished", 3, 5, 3)
    began = {name: record["started_at"] for name, record in runs(tmp_path, "trials").items()}
    assert tune(color_shards, tmp_path, **{**changes, "sweep__budget_s": "0.001"}) == cut, "it is what was asked for"
    whole = tune(color_shards, tmp_path, **{**changes, "sweep__budget_s": "null"})
    assert (whole["status"], whole["num_trials"], whole["sizes"]) == ("finished", 5, [3, 5])
    assert [trial["status"] for trial in whole["trials"]] == ["finished"] * 5
    assert whole["trials"][:3] == cut["trials"]
    again = {name: record["started_at"] for name, record in runs(tmp_path, "trials").items()}
    assert {name: again[name] for name in began} == began, "nothing is computed twice"
    rates = sorted(trial["params"]["train.optim.lr"] for trial in whole["trials"])
    edges = [0.01 * 10 ** (n / 5) for n in range(6)]
    assert all(low <= rate <= high for low, rate, high in zip(edges, rates, edges[1:], strict=False)), (
        "one in each fifth"
    )


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_population_hands_checkpoints_on_and_goes_on_with_the_values_it_had(
    color_shards: str, tmp_path: Path
) -> None:
    changes = {**QUICK, "sweep__search": "pbt", "sweep__mutable": "train.optim.lr", "sweep__num_trials": "3"}
    changes |= {"sweep__space__train__optim__lr": "log:1e-7,0.05", "train__eval_every": "1"}
    first = tune(color_shards, tmp_path, **changes)
    assert [t["status"] for t in first["trials"]] == ["finished"] * 3
    assert all(t["schedule"][0]["images_seen"] == 0 for t in first["trials"])
    for place in ("sweep.json", "trials/00001/run.json"):  # as a driver that was killed leaves them
        path = tmp_path / "small" / place
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))
    again = tune(color_shards, tmp_path, **changes)
    assert again["status"] == "finished" and again["populations"] == 2
    assert again["trials"] == first["trials"] and again["winner"] == first["winner"]
