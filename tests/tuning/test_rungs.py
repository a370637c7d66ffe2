"""Who goes on at a rung depends on the trials' records alone: not on slots, on speed, or on interruptions."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ltcore.config.records import RungDecision, RunRecord, Stopped
from ltcore.errors import NumericError, is_retryable
from ltcore.tuning.rungs import Cohort, Course, Part, Rung, ranked, rung_epoch, rungs, standing, whole_runs
from ltcore.tuning.winner import winner_of
from tests.records import run_record, trial_record

EPOCHS = 16
VALUES = {f"{n:05d}": value for n, value in enumerate((0.31, 0.12, 0.40, 0.22, 0.40, 0.05, 0.27, 0.33))}


@dataclass
class Shelf:
    """Records as trials leave them: a value is that of the trial, plus what the epochs bring."""

    metric: str = "val/top1"
    records: dict[str, RunRecord] = field(default_factory=dict)
    decisions: list[RungDecision] = field(default_factory=list)
    broken: dict[str, Exception] = field(default_factory=dict)
    """Trial -> the error that it meets."""
    early: Mapping[str, int] = field(default_factory=dict)
    """Trial -> the epoch at which its patience ends it."""
    blind: bool = False
    """No trial has a value."""
    epochs: int = EPOCHS
    eval_every: int = 4
    start: float = 3 / EPOCHS
    """Of the last term, as a fraction of training."""

    def read(self, trial: str) -> RunRecord | None:
        return self.records.get(trial)

    def epoch(self, params: Mapping[str, Any], rung: Rung) -> int:
        epochs = params.get("epochs", self.epochs)
        return rung_epoch(rung.fraction, epochs=epochs, eval_every=self.eval_every, start=self.start)

    def decision(self, cohort: int, rung: Rung) -> RungDecision | None:
        return next((d for d in self.decisions if (d.cohort, d.fraction) == (cohort, rung.fraction)), None)

    def decide(self, decision: RungDecision) -> None:
        if decision not in self.decisions:
            self.decisions.append(decision)
        for place in decision.trials:
            if not place.goes_on:
                why = Stopped(
                    epoch=place.epoch, value=place.value, rank=place.rank, of=len(decision.trials), keep=decision.keep
                )
                self.records[place.id] = replace(self.records[place.id], status="stopped", decision=why)

    def heard(self, trial: str, params: Mapping[str, Any], state: str, record: RunRecord | None) -> None:
        pass

    def run(self, part: Part, value: float) -> None:
        """What the trial does: it trains to the end of the part, or fails."""
        if part.trial in self.broken:
            error = self.broken[part.trial]
            self.records[part.trial] = run_record(status="failed", reason=str(error), retryable=is_retryable(error))
            return
        epochs = part.params.get("epochs", self.epochs)
        epoch = part.until or epochs
        last = {} if self.blind else {self.metric: value + 0.001 * epoch}
        status = "stopped" if part.until else "finished"
        if epoch >= (at := self.early.get(part.trial, epochs + 1)):
            epoch, status = at, "finished"
        self.records[part.trial] = run_record(status=status, epochs_done=epoch, last=last)


def course_of(shelf: Shelf, trials: Mapping[str, dict[str, Any]] | None = None) -> Course:
    points = trials or {name: {} for name in VALUES}
    return Course(iter([Cohort(0, points, rungs(len(points), 0.25, 3), shelf)]))


def run(shelf: Shelf, course: Course, slots: int, seed: int, most: int = 10_000) -> int:
    """As many parts at a time as there are slots; which of them ends first is drawn. Returns how many parts ran."""
    draw, running, ran = random.Random(seed), [], 0
    while ran < most:
        while len(running) < slots and (part := course.next_part()) is not None:
            running.append(part)
        if not running:
            break
        part = running.pop(draw.randrange(len(running)))
        shelf.run(part, VALUES.get(part.trial, 0.2))
        course.ended(part.trial)
        ran += 1
    return ran


def finished(shelf: Shelf) -> set[str]:
    return {name for name, record in shelf.records.items() if standing(record) == "finished"}


@pytest.mark.parametrize("slots", [1, 2, 4, 64])
def test_the_same_trials_reach_the_end_on_any_number_of_slots(slots: int) -> None:
    for seed in range(20):
        shelf = Shelf()
        course = course_of(shelf)
        assert run(shelf, course, slots, seed) == 8 + 3
        assert course.over
        assert finished(shelf) == {"00002", "00004", "00007"}
        stopped = [record for record in shelf.records.values() if standing(record) == "stopped"]
        assert len(stopped) == 5 and {record.epochs_done for record in stopped} == {4}
        (decision,) = shelf.decisions
        assert [place.id for place in decision.trials][:3] == ["00002", "00004", "00007"]
        assert [place.rank for place in decision.trials] == list(range(1, 9))


@pytest.mark.parametrize("at", [2, 4, 9])
def test_a_trial_that_stops_early_is_finished_and_is_not_compared_at_rungs(at: int) -> None:
    """Before the rung, at it, and after it; the others are cut among themselves."""
    shelf = Shelf(early={"00001": at, "00002": at})
    course = course_of(shelf)
    run(shelf, course, 2, seed=0)
    assert course.over
    (decision,) = shelf.decisions
    compared = {place.id for place in decision.trials}
    if at <= 4:
        assert compared == VALUES.keys() - {"00001", "00002"}
        assert finished(shelf) == {"00001", "00002", "00000", "00004", "00007"}
    else:
        assert compared == VALUES.keys() and finished(shelf) == {"00002", "00004", "00007"}
    assert shelf.records["00002"].epochs_done == at


@pytest.mark.parametrize("killed_after", range(11))
def test_an_interrupted_search_goes_on_to_the_same_end(killed_after: int) -> None:
    shelf, undisturbed = Shelf(), Shelf()
    run(undisturbed, course_of(undisturbed), 2, seed=0)
    run(shelf, course_of(shelf), 2, seed=1, most=killed_after)
    left = 11 - killed_after
    assert run(shelf, course_of(shelf), 3, seed=2) == left, "nothing that is there is trained again"
    assert shelf.records == undisturbed.records and shelf.decisions == undisturbed.decisions


def test_a_decision_whose_writer_was_killed_is_written_out() -> None:
    shelf = Shelf()
    run(shelf, course_of(shelf), 2, seed=0)
    shelf.records = {name: replace(record, decision=None) for name, record in shelf.records.items()}
    assert course_of(shelf).over
    assert len([r for r in shelf.records.values() if r.decision]) == 5


def test_nothing_is_decided_while_a_trial_of_the_cohort_is_missing() -> None:
    shelf = Shelf(broken={"00005": OSError("No space left on device")})
    course = course_of(shelf)
    run(shelf, course, 2, seed=0)
    assert course.over and not shelf.decisions and not finished(shelf)
    assert standing(shelf.records["00005"]) == "open"
    shelf.broken.clear()
    run(shelf, course_of(shelf), 2, seed=0)
    assert finished(shelf) == {"00002", "00004", "00007"}


def test_a_trial_that_failed_for_good_leaves_its_cohort() -> None:
    shelf = Shelf(broken={"00002": NumericError("Step 3: loss is nan")})
    run(shelf, course_of(shelf), 2, seed=0)
    assert finished(shelf) == {"00004", "00007", "00000"}
    assert len(shelf.decisions[0].trials) == 7


def test_a_trial_without_a_value_ranks_last() -> None:
    assert ranked({"a": None, "b": float("nan"), "c": 0.0, "d": 0.1, "e": 0.1}, "val/top1") == ["d", "e", "c", "a", "b"]
    shelf = Shelf(blind=True)
    run(shelf, course_of(shelf), 2, seed=0)
    assert len(finished(shelf)) == 3


def test_the_lowest_calibration_error_ranks_first() -> None:
    assert ranked({"a": None, "b": float("nan"), "c": 0.3, "d": 0.1}, "val/ece") == ["d", "c", "a", "b"]
    trials = [trial_record(name, last=value) for name, value in (("a", 0.3), ("b", 0.1), ("c", None))]
    assert winner_of(trials, "demo", 3, "val/few/ece").id == "b"
    assert winner_of(trials, "demo", 3, "val/few").id == "a"


def test_a_rung_lies_in_each_trials_own_training() -> None:
    """Trials of other lengths are compared at the same share; where that is a trial's end, it simply ends."""
    shelf = Shelf()
    lengths = {"00000": 16, "00001": 16, "00002": 32, "00003": 16, "00004": 4}
    run(shelf, course_of(shelf, {name: {"epochs": n} for name, n in lengths.items()}), 2, seed=0)
    assert {place.id: place.epoch for place in shelf.decisions[0].trials} == {
        "00000": 4,
        "00001": 4,
        "00002": 8,
        "00003": 4,
    }
    assert finished(shelf) == {"00000", "00002", "00003", "00004"}


def test_later_cohorts_begin_when_earlier_ones_are_settled() -> None:
    shelf, begun = Shelf(), []

    def cohorts() -> Any:
        for number in range(2):
            begun.append({name: standing(record) for name, record in shelf.records.items()})
            names = [f"{5 * number + n:05d}" for n in range(5)]
            yield Cohort(number, {name: {} for name in names}, rungs(5, 0.25, 3), shelf)

    course = Course(cohorts())
    run(shelf, course, 4, seed=0)
    assert course.over and len(begun) == 2
    assert sorted(begun[1].values()) == ["finished"] * 3 + ["stopped"] * 2
    assert len(finished(shelf)) == 6


@pytest.mark.parametrize(
    ("trials", "grace", "factor", "cuts"),
    [
        (8, 0.25, 3, [(0.25, 3)]),
        (24, 0.25, 3, [(0.25, 8), (0.75, 3)]),
        (3, 0.25, 3, []),
        (4, 0.25, 2, [(0.25, 3)]),
        (100, 1.0, 3, []),
        (27, 0.1, 2, [(0.1, 14), (0.2, 7), (0.4, 4), (0.8, 3)]),
    ],
)
def test_three_trials_at_least_reach_the_end(
    trials: int, grace: float, factor: int, cuts: list[tuple[float, int]]
) -> None:
    assert [(rung.fraction, rung.keep) for rung in rungs(trials, grace, factor)] == cuts


@pytest.mark.parametrize(
    ("fraction", "epochs", "eval_every", "start", "epoch"),
    [
        (0.25, 16, 1, 0.0, 4),
        (0.25, 16, 1, 0.25, 5),  # a term that begins there has to act first
        (0.25, 16, 1, 0.26, 6),  # what it needs is built at the end of epoch 5, so it acts in epoch 6
        (0.01, 16, 1, 0.0, 2),  # the first epoch fills the memories of a term that begins at once
        (0.25, 16, 4, 0.25, 8),  # and the epoch has to be validated
        (0.25, 10, 1, 0.0, 3),
        (0.3, 10, 1, 0.2, 3),
        (0.75, 8, 8, 0.0, 0),  # no rung at the end of training
        (0.9, 5, 1, 0.0, 0),
        (0.6, 5, 1, 0.9, 0),
        (0.75, 16, 4, 0.0, 12),  # one validation interval before the end is the last rung that is worth it
        (0.75, 15, 4, 0.0, 0),
    ],
)
def test_a_rung_is_a_validated_epoch_before_the_end_in_which_every_term_acted(
    fraction: float, epochs: int, eval_every: int, start: float, epoch: int
) -> None:
    assert rung_epoch(fraction, epochs=epochs, eval_every=eval_every, start=start) == epoch


SETTINGS = list(
    itertools.product(
        (1, 2, 4, 8, 30),  # trials
        (0.05, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.99, 1.0),  # grace
        (2, 3, 4),  # factor
        (1, 5, 16, 48),  # epochs
        (1, 4, 12),  # validation
        (0.0, 0.2, 0.6, 0.95),  # start of the last term
    )
)


def test_no_setting_puts_a_rung_at_the_end_or_before_a_term_has_acted() -> None:
    for size, grace, factor, epochs, eval_every, start in SETTINGS:
        for rung in rungs(size, grace, factor):
            epoch = rung_epoch(rung.fraction, epochs=epochs, eval_every=eval_every, start=start)
            if epoch:
                assert epoch % eval_every == 0 and epoch + eval_every <= epochs
                assert epoch >= rung.fraction * epochs - 1e-6
                assert epoch - 1 >= start * epochs - 1e-6, "what the term needs was there a whole epoch earlier"


def test_whatever_the_settings_a_trial_that_ran_to_its_end_is_finished_and_may_win() -> None:
    for size, grace, factor, epochs, eval_every, start in SETTINGS[::7]:
        shelf = Shelf(epochs=epochs, eval_every=eval_every, start=start)
        trials: dict[str, dict[str, Any]] = {f"{n:05d}": {} for n in range(size)}
        course = Course(iter([Cohort(0, trials, rungs(size, grace, factor), shelf)]))
        values = {name: ((n * 7919) % 101) / 101 for n, name in enumerate(trials)}
        while (part := course.next_part()) is not None:
            shelf.run(part, values[part.trial])
            course.ended(part.trial)
        assert course.over
        for record in shelf.records.values():
            assert (standing(record) == "finished") == (record.epochs_done == epochs)
        assert len(finished(shelf)) >= min(size, 3)
        best = max(values, key=lambda name: values[name])
        assert best in finished(shelf), (size, grace, factor, epochs, eval_every, start)
        epochs_compared = [decision.trials[0].epoch for decision in shelf.decisions]
        assert epochs_compared == sorted(set(epochs_compared)), "each comparison knows more than the one before"


def test_what_a_search_costs() -> None:
    assert whole_runs([8], 0.25, 3) == pytest.approx(8 * 0.25 + 3 * 0.75)
    assert whole_runs([5, 3], 1.0, 3) == 8


RANK_5 = Stopped(epoch=4, value=0.1, rank=5, of=8, keep=3)


@pytest.mark.parametrize(
    ("record", "until", "state"),
    [
        (None, 4, "open"),
        (run_record(epochs_done=3), 4, "open"),
        (run_record(epochs_done=4), 4, "there"),
        (run_record(status="stopped", epochs_done=4, reason="stopped after epoch 4 of 16"), 4, "there"),
        (run_record(status="stopped", epochs_done=4, reason="stopped after epoch 4 of 16"), 0, "open"),
        (run_record(status="stopped", epochs_done=4, decision=RANK_5), 0, "stopped"),
        (run_record(status="failed", epochs_done=4, reason="NumericError: x", retryable=False), 4, "failed"),
        (run_record(status="failed", epochs_done=4, reason="NumericError: x", retryable=False), 0, "failed"),
        (run_record(status="failed", epochs_done=4, reason="No space left on device", retryable=True), 4, "open"),
        (run_record(status="finished", epochs_done=16), 4, "finished"),
    ],
)
def test_what_a_record_says(record: RunRecord | None, until: int, state: str) -> None:
    assert standing(record, until) == state


def test_a_thousand_trials_cost_a_few_reads_each() -> None:
    @dataclass
    class Counting(Shelf):
        reads: int = 0

        def read(self, trial: str) -> RunRecord | None:
            self.reads += 1
            return super().read(trial)

    shelf, points = Counting(), {f"{n:05d}": {} for n in range(1000)}
    course, parts = course_of(shelf, points), 0
    while (part := course.next_part()) is not None:
        shelf.run(part, float(part.trial))
        course.ended(part.trial)
        parts += 1
    assert course.over
    kept = [decision.keep for decision in shelf.decisions]
    assert parts == 1000 + sum(kept), "every trial once, and once more for each rung that it passed"
    assert shelf.reads == 1000 + parts, "one look at what is there, and one after every part"
