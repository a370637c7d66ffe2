"""Which trials a sweep has when it is continued, cut short or given more of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltcore.config.load import dump, flat, load_run, load_sweep, override
from ltcore.config.tree import flatten
from ltcore.errors import ConfigError
from ltcore.runtime.execute import Job
from ltcore.runtime.identity import grows, identity, refuse_other
from ltcore.runtime.sweep_runs import forget_other
from ltcore.runtime.trials import BY_SCHEDULER, BY_TIME, collect, known_trials, settled

SWEEP = load_sweep("tune_lpa")


def record(folder: Path, name: str, status: str, reason: str = "", epochs: int = 3) -> None:
    path = folder / "trials" / name / "run.json"
    path.parent.mkdir(parents=True)
    fields: dict[str, Any] = {"kind": "trial", "status": status, "reason": reason, "epochs_done": epochs}
    path.write_text(json.dumps({**fields, "config": {}, "best": {}, "last": {}}))


def test_added_trials_leave_those_before_as_they_are() -> None:
    first = known_trials(SWEEP, 0, [8])
    more = known_trials(SWEEP, 0, [8, 12])
    assert list(first) == [f"{n:05d}" for n in range(8)]
    assert {name: more[name] for name in first} == first
    assert len(more) == 12
    assert len({tuple(params.values()) for params in more.values()}) == 12


def test_only_what_came_to_its_own_end_is_settled(tmp_path: Path) -> None:
    record(tmp_path, "done", "finished")
    record(tmp_path, "bad", "failed", "NumericError: ...")
    record(tmp_path, "pruned", "stopped", f"{BY_SCHEDULER} after epoch 3")
    record(tmp_path, "cut", "stopped", f"{BY_TIME} after epoch 3")
    record(tmp_path, "killed", "running")
    names = ("done", "bad", "pruned", "cut", "killed", "never")
    assert [settled(str(tmp_path), name) for name in names] == [True, True, True, False, False, False]


def test_who_ended_a_trial_is_written_down_once(tmp_path: Path) -> None:
    record(tmp_path, "pruned", "stopped", "ended early by the scheduler")
    record(tmp_path, "cut", "stopped", "ended early by the scheduler")
    record(tmp_path, "unheard", "running")
    found = {t["id"]: t["reason"] for t in collect(str(tmp_path), SWEEP, {"cut"}, True, {})}
    assert found["pruned"].startswith(BY_SCHEDULER)
    assert found["cut"].startswith(BY_TIME) and found["unheard"].startswith(BY_TIME)
    again = {t["id"]: t["reason"] for t in collect(str(tmp_path), SWEEP, set(), False, {})}
    assert again == found


def test_a_random_sweep_may_grow_and_nothing_else_may_change() -> None:
    stored = {"identity": identity(SWEEP)}
    more = identity(load_sweep("tune_lpa", {"sweep.num_trials": "12"}))
    assert grows(stored, more)
    refuse_other(stored, more, "somewhere")
    fewer = identity(load_sweep("tune_lpa", {"sweep.num_trials": "4"}))
    with pytest.raises(ConfigError, match=r"sweep.num_trials: 8 there, 4 now"):
        refuse_other(stored, fewer, "somewhere")
    of_another_version = {**stored["identity"], "objective.base_options.paco.sample_weight": 0.7}
    refuse_other({"identity": of_another_version}, identity(SWEEP), "somewhere")
    other = identity(load_sweep("tune_lpa", {"sweep.num_trials": "12", "train.batch_size": "32"}))
    with pytest.raises(ConfigError, match=r"train.batch_size: 64 there, 32 now"):
        refuse_other(stored, other, "somewhere")


@pytest.mark.parametrize("keep_all", [False, True], ids=["as now", "as another version stored it"])
def test_a_retrain_stays_unless_another_trial_won(tmp_path: Path, keep_all: bool) -> None:
    winner = load_run("digits_glt_lpa_dro_ifl", {"seed": "3"})
    job = Job(config=dump(winner), data_uri="data", run_uri=str(tmp_path / "retrain"), info={})
    other = replace(job, config=dump(override(winner, {"objective.terms.dro.radius": 0.3})))
    stored = flatten(dump(winner)) if keep_all else flat(winner)
    path = tmp_path / "retrain" / "run.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"config": stored}))
    forget_other(job)
    assert path.exists()
    forget_other(other)
    assert not path.exists()
