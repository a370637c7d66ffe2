"""Which trials a sweep has when it is continued, cut short or given more of them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltcore.config.load import load_run
from ltcore.config.overrides import flatten
from ltcore.config.records import RungDecision
from ltcore.config.retrained import BalancedRecord
from ltcore.config.sweep import read_sweep
from ltcore.errors import ConfigError, DataError, NumericError
from ltcore.training.record import RunInfo
from ltcore.training.run import Job
from ltcore.tuning.identity import check_same_sweep, has_more, identity, size_now
from ltcore.tuning.rungs import Cohort, rungs, standing
from ltcore.tuning.runs import forget_other
from ltcore.tuning.trainable import _told_by_record
from ltcore.tuning.trials import BY_TIME, TrialBook, collect, known_trials, last_values, read_records
from tests.records import run_record, sweep_record

SWEEP = read_sweep("tune_lpa")


TRIALS: dict[str, dict[str, Any]] = {name: {} for name in ("bad", "cut", "done", "killed", "never", "lost", "unheard")}


def record(folder: Path, name: str, status: str, reason: str = "", epochs: int = 3, value: float | None = None) -> Path:
    run_dir = folder / "trials" / name
    run_record(status=status, reason=reason, epochs_done=epochs, last={"val/top1": value}).write(run_dir)
    return run_dir / "run.json"


def test_added_trials_leave_those_before_as_they_are() -> None:
    (first,) = known_trials(SWEEP, 0, [8])
    before, added = known_trials(SWEEP, 0, [8, 12])
    assert before == first and list(first) == [f"{n:05d}" for n in range(8)]
    assert list(added) == [f"{n:05d}" for n in range(8, 12)]
    assert len({tuple(params.values()) for params in (before | added).values()}) == 12


def test_a_cut_sweep_has_the_first_trials_of_the_whole_one_and_gets_the_others_later() -> None:
    (whole,) = known_trials(SWEEP, 0, [8])
    (cut,) = known_trials(SWEEP, 0, [5], cut_from=8)
    assert cut == dict(list(whole.items())[:5])
    first, rest = known_trials(SWEEP, 0, [5, 8], cut_from=8)
    assert first == cut and first | rest == whole
    first, more = known_trials(SWEEP, 0, [5, 24], cut_from=8)
    assert first == cut and list(more) == [f"{n:05d}" for n in range(5, 24)]


def test_the_same_command_adds_nothing_to_a_cut_sweep_and_without_a_budget_it_does() -> None:
    cut = sweep_record(identity=identity(SWEEP), num_trials=5, sizes=(5,), cut_from=8, comparison={})
    budget = replace(SWEEP, alt=False)
    free, more = (read_sweep("tune_lpa", {**words, "sweep.alt": "false"}) for words in FREE)
    assert (size_now(cut, budget), size_now(cut, free), size_now(cut, more)) == (5, 8, 24)
    assert [has_more(cut, sweep) for sweep in (budget, free, more)] == [False, True, True]
    for sweep in (budget, free, more):
        check_same_sweep(cut, identity(sweep), "somewhere")
    filled = replace(cut, num_trials=8, sizes=(5, 8))
    assert (size_now(filled, budget), has_more(filled, budget), has_more(filled, free)) == (8, False, False)
    assert size_now(None, budget) == 8


FREE = ({"sweep.budget_s": "null"}, {"sweep.num_trials": "24"})


def test_runs_after_the_search_are_added_once() -> None:
    done = sweep_record(identity=identity(SWEEP), comparison={})
    for key, field in (("alt", "balanced"), ("ablation", "ablation")):
        asked = replace(SWEEP, **{"alt": False, "ablation": False, key: True})
        check_same_sweep(done, identity(asked), "somewhere")
        assert has_more(done, asked)
        there = {"balanced": BalancedRecord(runs=(), comparison={}), "ablation": ()}
        assert not has_more(replace(done, **{field: there[field]}), asked)
        assert not has_more(replace(done, comparison=None), asked), "without retrains there is nothing to compare with"


def test_a_thousand_trials_are_planned_in_no_time() -> None:
    began = time.process_time()
    (trials,) = known_trials(replace(SWEEP, num_trials=1000), 0, [1000])
    spent = time.process_time() - began
    assert len(trials) == 1000 and spent < 2
    assert len({params["objective.terms.lpa.weight"] for params in trials.values()}) > 990


def test_nobody_is_said_to_have_ended_a_trial_that_nobody_ended(tmp_path: Path) -> None:
    record(tmp_path, "done", "finished")
    record(tmp_path, "bad", "failed", "NumericError: Step 3: ...")
    killed = record(tmp_path, "killed", "running")
    record(tmp_path, "lost", "running")
    before = killed.read_text()
    found = {
        t.id: (t.status, t.reason)
        for t in collect(str(tmp_path), SWEEP, TRIALS, {"lost": "The actor died", "unheard": "x"}, out_of_time=False)
    }
    assert found == {
        "done": ("finished", ""),
        "bad": ("failed", "NumericError: Step 3: ..."),
        "killed": ("running", ""),
        "lost": ("failed", "The actor died"),
        "unheard": ("failed", "x"),
    }
    assert killed.read_text() == before


def test_a_trial_that_cannot_begin_is_no_loss_that_a_repetition_brings_back(tmp_path: Path) -> None:
    lost = {"lost": "The actor died", "never": "done, from which it starts, failed"}
    found = collect(str(tmp_path), SWEEP, TRIALS, lost, out_of_time=False, barred={"never"})
    assert [(t.id, t.retryable, standing(t)) for t in found] == [("lost", True, "open"), ("never", False, "failed")]


def test_who_ended_a_trial_is_written_down_where_time_did(tmp_path: Path) -> None:
    record(tmp_path, "cut", "stopped", "ended early by the driver")
    record(tmp_path, "unheard", "running")
    record(tmp_path, "bad", "failed", "OSError: No space left on device")
    found = {t.id: t.reason for t in collect(str(tmp_path), SWEEP, TRIALS, {}, out_of_time=True)}
    assert found["cut"] == found["unheard"] == f"{BY_TIME} after epoch 3"
    assert found["bad"] == "OSError: No space left on device"
    again = {t.id: t.reason for t in collect(str(tmp_path), SWEEP, TRIALS, {}, out_of_time=False)}
    assert again == found


def test_a_decision_is_in_the_sweep_before_it_is_in_the_records(tmp_path: Path) -> None:
    """Killed between the two, the sweep still knows; the records get it when it goes on."""
    for n, value in enumerate((0.3, 0.2, None, 0.4)):
        record(tmp_path, f"{n:05d}", "stopped", "stopped after epoch 5 of 16", epochs=5, value=value)
    decisions: list[RungDecision] = []
    base = load_run("digits_glt_lpa_dro_ifl").replace({"train.eval_every": 5, "train.epochs": 16})
    points: dict[str, dict[str, Any]] = {f"{n:05d}": {} for n in range(4)}

    def cohort(save: Any) -> Cohort:
        book = TrialBook(str(tmp_path), base, "val/top1", 0.2, decisions, save, lambda *_: None)
        return Cohort(0, points, rungs(4, 0.25, 3), book)

    def killed(decision: RungDecision) -> None:
        decisions.append(decision)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohort(killed)
    assert standing(read_records(str(tmp_path), ["00002"])["00002"]) == "open"
    parts = []
    goes_on = cohort(decisions.append)
    while (part := goes_on.next_part()) is not None:
        parts.append(part.trial)
    assert parts == ["00000", "00001", "00003"]
    found = read_records(str(tmp_path), points)
    assert [standing(r) for r in found.values()] == ["open", "open", "stopped", "open"]
    assert found["00002"] is not None
    assert found["00002"].reason == "stopped after epoch 5: rank 4 of 4, the best 3 went on"
    assert len(decisions) == 1


def test_a_member_of_a_population_goes_on_with_the_values_that_it_had_last() -> None:
    params = {"lr": 0.1, "envs": 2}
    assert last_values(params, run_record(config={"lr": 0.2, "envs": 4, "seed": 0})) == {"lr": 0.2, "envs": 4}
    assert last_values(params, None) == params


def test_a_random_sweep_may_grow_and_nothing_else_may_change() -> None:
    stored = sweep_record(identity=identity(SWEEP))
    more = read_sweep("tune_lpa", {"sweep.num_trials": "12"})
    assert has_more(stored, more) and not has_more(stored, SWEEP)
    check_same_sweep(stored, identity(more), "somewhere")
    fewer = identity(read_sweep("tune_lpa", {"sweep.num_trials": "4"}))
    with pytest.raises(ConfigError, match=r"sweep.num_trials: 8 there, 4 now"):
        check_same_sweep(stored, fewer, "somewhere")
    of_another_version = {**stored.identity, "objective.base_options.paco.sample_weight": 0.7}
    check_same_sweep(sweep_record(identity=of_another_version), identity(SWEEP), "somewhere")
    other = identity(read_sweep("tune_lpa", {"sweep.num_trials": "12", "train.batch_size": "64"}))
    with pytest.raises(ConfigError, match=r"train.batch_size: 32 there, 64 now"):
        check_same_sweep(stored, other, "somewhere")


@pytest.mark.parametrize("keep_all", [False, True], ids=["as now", "as another version stored it"])
def test_a_retrain_stays_unless_another_trial_won(tmp_path: Path, keep_all: bool) -> None:
    winner = load_run("digits_glt_lpa_dro_ifl", {"seed": "3"})
    job = Job(config=winner.to_dict(), data_uri="data", run_uri=str(tmp_path / "retrain"), info=RunInfo(id="x"))
    other = replace(job, config=winner.replace({"objective.terms.dro.radius": 0.3}).to_dict())
    stored = flatten(winner.to_dict()) if keep_all else winner.to_flat()
    path = tmp_path / "retrain" / "run.json"
    run_record(config=stored).write(path.parent)
    forget_other(job, "sweep")
    assert path.exists()
    forget_other(other, "sweep")
    assert not path.exists()


@pytest.mark.parametrize("before", ["failed", "stopped", ""])
def test_only_a_failure_that_this_start_wrote_down_is_left_to_the_driver(before: str, tmp_path: Path) -> None:
    """Of an error before a start has a record, an earlier start's reason says nothing."""
    place = str(tmp_path)
    if before:
        run_record(status=before, reason="No space left on device").write(place)
    with pytest.raises(DataError, match="a shard is damaged"), _told_by_record(place):
        raise DataError("a shard is damaged")
    with _told_by_record(place):
        run_record(status="failed", reason="a loss is not finite", pid=8).write(place)
        raise NumericError("a loss is not finite")


def test_a_term_that_the_space_switches_is_on_in_what_the_sweep_says_of_a_trial(tmp_path: Path) -> None:
    """Its run has the keys of the term, and none of the section: the winner would be trained again without it."""
    space = {"sweep.space.objective.terms.lpa": "choice:on,null", "sweep.space.objective.terms.lpa.weight": "null"}
    sweep = read_sweep("tune_lpa", space)
    trials = {"on": {"objective.terms.lpa": "on"}, "off": {"objective.terms.lpa": None}}
    base = load_run(sweep.recipe)
    for name, params in trials.items():
        run_record(status="finished", config=base.replace(params).to_flat()).write(tmp_path / "trials" / name)
    found = {trial.id: trial.params for trial in collect(str(tmp_path), sweep, trials, {}, out_of_time=False)}
    assert [found[name]["objective.terms.lpa"] for name in ("on", "off")] == ["on", None]
