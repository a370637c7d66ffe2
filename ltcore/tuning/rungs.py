"""Successive halving by complete cohorts: where trials are compared, who goes on, and which part of which trial is next.

A cohort is trained up to a rung, ranked when all of it is there, and cut; only then do the best go on to the next rung. So
nothing depends on which process was faster or on how many ran at a time. Whatever is decided follows from the trials' own
records and is written down before it has an effect, so a sweep that was interrupted goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ltcore.config.records import Place, RungDecision, RunRecord, TrialRecord
from ltcore.evaluation.catalog import goodness

FINALISTS = 3
"""Trials that always reach the end: one value ranks nothing on small validation sets."""


@dataclass(frozen=True)
class Rung:
    """A point of training at which a cohort is cut."""

    fraction: float
    """Of a whole training."""
    keep: int
    """How many of the cohort go on."""


@dataclass(frozen=True)
class Part:
    """A stretch of one trial, which goes on from wherever the trial stands."""

    trial: str
    params: Mapping[str, Any]
    until: int
    """Epoch at which it ends with a checkpoint; 0: the end of the trial."""


def rungs(num_trials: int, grace: float, factor: int) -> tuple[Rung, ...]:
    """Returns the cuts of a cohort.

    The first is after ``grace`` of training, each further one ``factor`` times as late. Each leaves one trial in
    ``factor``, but never fewer than ``FINALISTS``. A rung that would stop nobody is left out.
    """
    found, left, fraction = [], num_trials, grace
    while fraction < 1 and (keep := max(FINALISTS, math.ceil(left / factor))) < left:
        found.append(Rung(fraction, keep))
        left, fraction = keep, fraction * factor
    return tuple(found)


def rung_epoch(fraction: float, *, epochs: int, eval_every: int, start: float) -> int:
    """Returns the epoch of a rung: the first validated one at or after ``fraction`` of training.

    Every term has then acted for a whole epoch. ``start`` is that of the latest: what it needs is built at the end of the
    first epoch that reaches this fraction. The epoch is 0 where none meets this a validation interval before the end: a
    trial that got so far is not worth stopping, and one that is through must not be.
    """
    begun = max(1, math.ceil(start * epochs - 1e-9))
    least = max(math.ceil(fraction * epochs - 1e-9), begun + 1)
    epoch = math.ceil(least / eval_every) * eval_every
    return epoch if epoch + eval_every <= epochs else 0


def whole_runs(cohorts: Sequence[int], grace: float, factor: int) -> float:
    """Returns what cohorts of these sizes cost, in whole trainings."""
    total = 0.0
    for size in cohorts:
        left, before = size, 0.0
        for rung in rungs(size, grace, factor):
            total += left * (rung.fraction - before)
            left, before = rung.keep, rung.fraction
        total += left * (1 - before)
    return total


def ranked(values: Mapping[str, float | None], metric: str) -> list[str]:
    """Returns names by their value of ``metric``, the best first and equal ones by name; those without a number last."""
    return sorted(values, key=lambda name: (-goodness(metric, values[name]), name))


def standing(record: RunRecord | TrialRecord | None, until: int = 0) -> str:
    """Returns what a trial's record says of it.

    'finished', 'failed' (for good) and 'stopped' (by the decision of a rung) are outcomes. 'there': it is at epoch
    ``until``. Everything else is 'open': nothing has been decided about it, so it has to run, or to run again.
    """
    if record is None:
        return "open"
    if record.decision is not None:
        return "stopped"
    if record.status == "finished":
        return "finished"
    if record.status == "failed":
        return "failed" if record.retryable is False else "open"
    return "there" if until and record.epochs_done == until else "open"


class Book(Protocol):
    """What a cohort reads, and where its decisions are written."""

    metric: str

    def read(self, trial: str) -> RunRecord | None:
        """Returns the trial's record, or None where there is none yet."""

    def epoch(self, params: Mapping[str, Any], rung: Rung) -> int:
        """Returns the rung's epoch in a trial of these parameters; 0 where that trial has no such rung."""

    def decision(self, cohort: int, rung: Rung) -> RungDecision | None:
        """Returns what was decided at the rung earlier, or None."""

    def decide(self, decision: RungDecision) -> None:
        """Writes the decision down: for the sweep, and in the records of the trials that it stops."""

    def heard(self, trial: str, params: Mapping[str, Any], state: str, record: RunRecord | None) -> None:
        """Hears that a part of the trial has ended; ``state`` is its standing."""


class Cohort:
    """Trials that are compared with each other."""

    def __init__(self, number: int, trials: Mapping[str, Mapping[str, Any]], cuts: Sequence[Rung], book: Book) -> None:
        self._number, self._trials, self._book = number, trials, book
        self._rungs = list(cuts)
        self._alive = list(trials)
        self._waiting: list[Part] = []
        self._running: set[str] = set()
        self._ended: list[str] = []
        self._records: dict[str, RunRecord | None] = {}
        self.over = False
        self.open: list[str] = []
        """Once it is over: trials that came to no end, so that nothing could be decided."""
        while self._rungs and (decision := book.decision(number, self._rungs[0])) is not None:
            book.decide(decision)  # again: whoever wrote it may have been killed on the way
            self._apply(decision)
        self._fill()
        self._go_on()

    def next_part(self) -> Part | None:
        """Returns the part to start next.

        It is None while none may start before another has ended, and when the cohort is over.
        """
        self._hear()
        self._go_on()
        if self.over or not self._waiting:
            return None
        part = self._waiting.pop(0)
        self._running.add(part.trial)
        return part

    def ended(self, trial: str) -> None:
        """Notes that a part has ended, for whatever reason.

        Its record is read at the next call of ``next_part``.
        """
        self._ended.append(trial)

    def _hear(self) -> None:
        while self._ended:
            trial = self._ended.pop(0)
            self._running.discard(trial)
            self._records[trial] = record = self._book.read(trial)
            self._book.heard(trial, self._trials[trial], standing(record, self._until(trial)), record)

    def _until(self, trial: str) -> int:
        return self._book.epoch(self._trials[trial], self._rungs[0]) if self._rungs else 0

    def _fill(self) -> None:
        """Queues the parts that are missing until the next rung, or until the end after the last."""
        missing = [trial for trial in self._alive if trial not in self._records]
        with ThreadPoolExecutor(16) as pool:  # an object store answers in its own time
            self._records.update(zip(missing, pool.map(self._book.read, missing), strict=True))
        self._waiting = [
            Part(trial, self._trials[trial], self._until(trial))
            for trial in self._alive
            if self._state(trial) == "open"
        ]

    def _state(self, trial: str) -> str:
        return standing(self._records[trial], self._until(trial))

    def _go_on(self) -> None:
        while not (self.over or self._waiting or self._running):
            self._advance()

    def _advance(self) -> None:
        self.open = [trial for trial in self._alive if self._state(trial) == "open"]
        if self.open or not self._rungs:
            self.over = True
            return
        decision = self._compare(self._rungs[0])
        if decision is not None:
            self._book.decide(decision)
            self._apply(decision)
        else:
            self._rungs.pop(0)
        self._fill()

    def _compare(self, rung: Rung) -> RungDecision | None:
        """Returns the cut among the trials that are at the rung; None where there are none."""
        values: dict[str, float | None] = {}
        for trial in self._alive:
            record = self._records[trial]
            if record is not None and self._state(trial) == "there":
                values[trial] = record.last.get(self._book.metric)
        places = tuple(
            Place(id=trial, epoch=self._until(trial), value=values[trial], rank=rank, goes_on=rank <= rung.keep)
            for rank, trial in enumerate(ranked(values, self._book.metric), 1)
        )
        if not places:
            return None
        return RungDecision(cohort=self._number, fraction=rung.fraction, keep=rung.keep, trials=places)

    def _apply(self, decision: RungDecision) -> None:
        stopped = {place.id for place in decision.trials if not place.goes_on}
        self._alive = [trial for trial in self._alive if trial not in stopped]
        self._rungs.pop(0)
        at = {place.id: place.epoch for place in decision.trials if place.goes_on}
        while self._rungs and all(self._until(trial) == epoch for trial, epoch in at.items()):
            self._rungs.pop(0)  # the same epochs are compared once: nothing new is known there


class Course:
    """Cohorts one after another; a later one may be made of what the earlier ones came to."""

    def __init__(self, cohorts: Iterator[Cohort]) -> None:
        self._cohorts = cohorts
        self._now = next(cohorts, None)
        self._skip()

    @property
    def over(self) -> bool:
        """Tells whether no part is left to start, and none will be."""
        return self._now is None or self._now.over

    def next_part(self) -> Part | None:
        """Returns the part to start next, as ``Cohort.next_part``.

        After a cohort with open trials no other one begins.
        """
        while self._now is not None:
            part = self._now.next_part()
            if part is not None or not self._skip():
                return part
        return None

    def _skip(self) -> bool:
        """Skips cohorts in which all is decided; tells whether there was one."""
        before = self._now
        while self._now is not None and self._now.over and not self._now.open:
            self._now = next(self._cohorts, None)
        return self._now is not before

    def ended(self, trial: str) -> None:
        """Notes that a part has ended, as ``Cohort.ended``."""
        assert self._now is not None, "parts come from a cohort"
        self._now.ended(trial)
