"""Batches of Optuna's suggestions are a function of what went before, and Optuna hears the truth about it."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from optuna.study import Study
from optuna.trial import TrialState

from ltcore.config.json_record import RecordFile
from ltcore.config.load import base_run
from ltcore.config.records import Stopped, SweepRecord
from ltcore.config.retrained import BalancedRecord
from ltcore.config.space import SpaceSpec
from ltcore.config.sweep import read_sweep
from ltcore.tuning.rungs import Course, Part
from ltcore.tuning.sweep import Sweep
from ltcore.tuning.tpe import Past, batch_size, past_of, suggest
from ltcore.tuning.trials import collect, folder_of
from tests.records import run_record, sweep_record

SPACE = {
    "lr": SpaceSpec("log", (1e-3, 1.0)),
    "mix": SpaceSpec("uniform", (0.0, 0.5)),
    "envs": SpaceSpec("int", (1, 4)),
    "base": SpaceSpec("choice", ("paco", None, True)),
}


def worth(params: dict[str, Any]) -> float:
    """Best at lr = 0.03 and four environments."""
    return 1 - abs(-1.5 - math.log10(params["lr"])) / 3 + 0.05 * params["envs"]


def searched(batches: int, seed: int = 0) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for batch in range(batches):
        past = [Past(params, worth(params), 1.0) for params in points]
        points += suggest(SPACE, past, count=5, seed=1000 * seed + batch)
    return points


def test_suggestions_depend_on_seed_and_past_alone() -> None:
    points = searched(4)
    assert points == searched(4)
    assert points[:15] == searched(3), "what was suggested does not depend on what follows"
    assert points != searched(4, seed=1)
    for point in points:
        assert 1e-3 <= point["lr"] <= 1 and point["lr"] == float(f"{point['lr']:.6g}")
        assert point["envs"] in (1, 2, 3, 4) and point["base"] in ("paco", None, True)


def test_what_was_good_draws_the_next_ones() -> None:
    points = searched(8)
    early, late = points[:10], points[20:]
    assert sum(map(worth, late)) / len(late) > sum(map(worth, early)) / len(early) + 0.05
    assert len({point["lr"] for point in points[-5:]}) == 5, "a batch is not one point five times"


def test_where_lower_is_better_the_low_ones_draw_the_next_ones() -> None:
    """The same points with the values' signs turned around are the same search."""
    past = [Past(params, worth(params), 1.0) for params in searched(4)]
    turned = [Past(trial.params, -(trial.value or 0.0), 1.0) for trial in past]
    assert suggest(SPACE, turned, count=5, seed=3, minimize=True) == suggest(SPACE, past, count=5, seed=3)


def test_stopped_trials_are_told_as_pruned_and_failed_ones_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(Study, "add_trial", lambda self, trial: told.append(trial))
    params = {"lr": 0.01, "mix": 0.1, "envs": 2, "base": None}
    suggest(SPACE, [Past(params, 0.6, 1.0), Past(params, 0.3, 0.25), Past(params, None, 1.0)], count=1, seed=0)
    assert [trial.state for trial in told] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert told[1].intermediate_values == {25: 0.3}


def test_what_a_record_tells() -> None:
    common: dict[str, Any] = {"config": {"lr": 0.1}, "epochs_planned": 16, "last": {"val/top1": 0.5}}
    assert past_of({"lr": 0.1}, run_record(status="finished", **common), "val/top1") == Past({"lr": 0.1}, 0.5, 1.0)
    decision = Stopped(epoch=4, value=0.2, rank=4, of=4, keep=3)
    assert past_of({"lr": 0.1}, run_record(status="stopped", decision=decision, **common), "val/top1") == Past(
        {"lr": 0.1}, 0.2, 0.25
    )
    assert past_of({"lr": 0.1}, run_record(status="failed", **common), "val/top1").value is None


def test_batches_depend_on_the_number_of_trials_alone() -> None:
    assert [batch_size(n) for n in (20, 50, 51, 100, 400)] == [5, 5, 6, 10, 40]


def make_sweep(folder: Path, num_trials: int = 20) -> Sweep:
    """The driver's side of a sweep of 20 trials, of which a budget may allow fewer, without Ray."""
    config = read_sweep("tune_lpa", {"sweep.search": "tpe", "sweep.num_trials": "20"})
    sweep = Sweep.__new__(Sweep)
    setup = SimpleNamespace(sweep=config, base=base_run(config), num_trials=num_trials, seed=0, uri=str(folder))
    sweep.setup, sweep._lost = setup, {}
    sweep.file = RecordFile(
        folder, SweepRecord.read(folder) or sweep_record(space=dict.fromkeys(config.space, "uniform:0,1"))
    )
    sweep.save = sweep.file.update
    sweep.display = sweep.watch = Mock()
    return sweep


def train(folder: Path, part: Part) -> None:
    """What a trial leaves behind: a value that its parameters and its epoch decide."""
    weight, radius = (part.params[f"objective.terms.{key}"] for key in ("lpa.weight", "dro.radius"))
    epoch = part.until or 16
    value = 0.5 - abs(math.log10(weight) + 1) / 5 - abs(math.log10(radius)) / 5 + 0.01 * epoch
    record = run_record(
        status="stopped" if part.until else "finished",
        config=part.params,
        epochs_done=epoch,
        last={"val/balanced_accuracy": value},
        best={"val/balanced_accuracy": value},
    )
    record.write(folder_of(str(folder), part.trial))


@pytest.mark.parametrize(("slots", "killed_after"), [(2, None), (4, None), (3, 13)])
def test_slots_and_interruptions_change_nothing_that_a_search_comes_to(
    tmp_path: Path, undisturbed: dict[str, Any], slots: int, killed_after: int | None
) -> None:
    assert searched_through(tmp_path, slots, killed_after) == undisturbed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return searched_through(tmp_path_factory.mktemp("undisturbed"), slots=1)


def test_a_search_that_a_budget_cut_goes_on_to_the_same_end(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    cut = searched_through(tmp_path, slots=2, num_trials=10)
    assert len(cut["trials"]) == 10 and len(cut["suggested"]) == 2
    assert searched_through(tmp_path, slots=2) == undisturbed


def test_what_was_trained_of_another_winner_says_nothing_of_this_one(tmp_path: Path) -> None:
    searched_through(tmp_path, slots=1, num_trials=10)
    sweep = make_sweep(tmp_path, num_trials=10)
    sweep.watch.out_of_time.is_set.return_value = False  # type: ignore[attr-defined]
    balanced = BalancedRecord(runs=(), comparison={})
    trained: dict[str, Any] = {"retrain": (), "comparison": {}, "balanced": balanced, "ablation": ()}
    sweep.save(**trained)
    assert sweep.choose() and sweep.record.ablation == ()
    sweep.save(winner="00099")
    assert sweep.choose() and sweep.record.winner != "00099"
    assert [getattr(sweep.record, field) for field in trained] == [None] * 4


def searched_through(folder: Path, slots: int, killed_after: int | None = None, num_trials: int = 20) -> dict[str, Any]:
    """The trials and decisions of a search on so many slots, whose driver is killed after so many parts."""
    draw, ran = random.Random(slots), 0
    for most in ([] if killed_after is None else [killed_after]) + [1000]:
        sweep, running = make_sweep(folder, num_trials), []
        course = Course(sweep._cohorts())
        while ran < most:
            while len(running) < slots and (part := course.next_part()) is not None:
                running.append(part)
            if not running:
                break
            part = running.pop(draw.randrange(len(running)))
            train(folder, part)
            course.ended(part.trial)
            ran += 1
    sweep.save(trials=collect(str(folder), sweep.setup.sweep, sweep._points(), {}, out_of_time=False))
    sweep.watch.out_of_time.is_set.return_value = False
    assert sweep.choose()
    found = sweep.record.to_json()
    assert len(found["trials"]) == num_trials and len(found["rungs"]) == num_trials // 5
    assert [t["status"] for t in found["trials"]].count("finished") == num_trials // 5 * 3
    return {key: found[key] for key in ("suggested", "rungs", "winner", "trials")}
