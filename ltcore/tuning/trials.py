"""Which trials a sweep has, what was decided about each, and what became of it; read from the run directories alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from ltcore.config.records import Place, RungDecision, RunRecord, Stopped, TrialRecord
from ltcore.config.schema import RunConfig
from ltcore.config.space import grid_points, sample_space
from ltcore.config.sweep import SweepConfig
from ltcore.lease import check_held
from ltcore.storage import join
from ltcore.tuning.rungs import Rung, rung_epoch, standing

BY_TIME = "ended by the time limit (--max-hours)"
AT_A_TIME = 16
"""Records that are read or written at a time: an object store answers in its own time."""


def known_trials(
    sweep: SweepConfig, seed: int, sizes: Sequence[int], cut_from: int | None = None
) -> list[dict[str, dict[str, Any]]]:
    """Returns name -> parameters of every trial whose values are known beforehand, by cohorts.

    These are all trials but those of search=tpe. ``sizes`` are the numbers of trials that the sweep has had, rising:
    trials that are added later are a cohort of their own and leave the earlier ones as they are. The first are those of
    a sweep of ``cut_from`` trials, where they are fewer.
    """
    if sweep.search == "grid":
        return [{name_of(t): dict(point) for t, point in enumerate(grid_points(sweep.space))}]
    sampled = (cut_from or sizes[0], *sizes[1:])
    return [
        {name_of(t): dict(sample_space(sweep.space, t, num_trials=of, seed=seed)) for t in range(before, size)}
        for before, size, of in zip((0, *sizes), sizes, sampled, strict=False)
    ]


def name_of(number: int) -> str:
    """Returns the name of a trial by its number."""
    return f"{number:05d}"


def folder_of(sweep_uri: str, name: str) -> str:
    """Returns the run directory of a trial."""
    return join(sweep_uri, "trials", name)


def read_records(sweep_uri: str, names: Iterable[str]) -> dict[str, RunRecord | None]:
    """Reads the trials' records; None where there is none yet."""
    names = list(names)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = pool.map(lambda name: RunRecord.read(folder_of(sweep_uri, name)), names)
        return dict(zip(names, found, strict=True))


def last_values(params: Mapping[str, Any], record: RunRecord | None) -> dict[str, Any]:
    """Returns the values with which a member of a population trained last.

    They may be another member's; ``params`` before it began.
    """
    config = {} if record is None else record.config
    return {key: config.get(key, value) for key, value in params.items()}


Heard = Callable[[str, Mapping[str, Any], str, RunRecord | None], None]


class TrialBook:
    """What cohorts read, and where their decisions go: ``sweep.json`` first, then the records of the trials they stop."""

    def __init__(
        self,
        uri: str,
        base: RunConfig,
        metric: str,
        start: float,
        rungs: Sequence[RungDecision],
        save: Callable[[RungDecision], None],
        on_part: Heard,
    ) -> None:
        """Keeps the sweep's decisions for its cohorts.

        ``start`` is that of the latest term of any trial, ``rungs`` the decisions in ``sweep.json``; ``save`` adds a
        further one there.
        """
        self.metric = metric
        self._uri, self._base, self._start = uri, base, start
        self._rungs, self._save, self._on_part = list(rungs), save, on_part

    def read(self, trial: str) -> RunRecord | None:
        return RunRecord.read(folder_of(self._uri, trial))

    def epoch(self, params: Mapping[str, Any], rung: Rung) -> int:
        train = self._base.train
        return rung_epoch(
            rung.fraction,
            epochs=params.get("train.epochs", train.epochs),
            eval_every=params.get("train.eval_every", train.eval_every),
            start=self._start,
        )

    def decision(self, cohort: int, rung: Rung) -> RungDecision | None:
        return next((d for d in self._rungs if (d.cohort, d.fraction) == (cohort, rung.fraction)), None)

    def decide(self, decision: RungDecision) -> None:
        if decision not in self._rungs:
            self._rungs.append(decision)
            self._save(decision)
        stopped = [place for place in decision.trials if not place.goes_on]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(lambda place: self._note(place, len(decision.trials), decision.keep), stopped))

    def _note(self, place: Place, of: int, keep: int) -> None:
        record = self.read(place.id)
        assert record is not None, "its value was read there"
        if record.decision is None:
            evidence = Stopped(epoch=place.epoch, value=place.value, rank=place.rank, of=of, keep=keep)
            reason = f"stopped after epoch {place.epoch}: rank {place.rank} of {of}, the best {keep} went on"
            ended = replace(record, status="stopped", reason=reason, decision=evidence)
            ended.write(folder_of(self._uri, place.id), partial(check_held, self._uri))

    def heard(self, trial: str, params: Mapping[str, Any], state: str, record: RunRecord | None) -> None:
        self._on_part(trial, params, state, record)


def collect(
    sweep_uri: str,
    sweep: SweepConfig,
    trials: Mapping[str, Mapping[str, Any]],
    lost: Mapping[str, str],
    *,
    out_of_time: bool,
    barred: Collection[str] = (),
) -> tuple[TrialRecord, ...]:
    """Returns the outcome of every trial; one that never began is left out.

    Args:
        trials: name -> parameters.
        lost: trials whose process died for the last time, and what Ray said of it.
        out_of_time: the time limit ended those that did not finish; their ``run.json`` says so from now on.
        barred: those of ``lost`` that no repetition brings back, as what they start from has failed for good.
    """
    found = []
    for name, record in read_records(sweep_uri, trials).items():
        if record is None and name not in lost:
            continue
        entry = _entry(name, record, trials[name], sweep)
        if standing(record) == "open":
            if name in lost and entry.status != "failed":
                entry = replace(entry, status="failed", reason=lost[name], retryable=name not in barred)
            elif record is not None and out_of_time and record.status != "failed":
                reason = f"{BY_TIME} after epoch {record.epochs_done}"
                stopped = replace(record, status="stopped", reason=reason)
                stopped.write(folder_of(sweep_uri, name), partial(check_held, sweep_uri))
                entry = replace(entry, status="stopped", reason=reason)
        found.append(entry)
    return tuple(sorted(found, key=lambda entry: entry.id))


def _entry(name: str, record: RunRecord | None, params: Mapping[str, Any], sweep: SweepConfig) -> TrialRecord:
    """Returns what the sweep says of a trial; of one that left no record, that it began."""
    config, last, best = (params, {}, {}) if record is None else (record.config, record.last, record.best)
    return TrialRecord(
        id=name,
        run_dir=f"trials/{name}",
        status="running" if record is None else record.status,
        reason="" if record is None else record.reason,
        retryable=None if record is None else record.retryable,
        # a section, or a key without effect, is not in a run
        params={key: config.get(key, params.get(key)) for key in sweep.space},
        epochs_done=0 if record is None else record.epochs_done,
        best=best.get(sweep.metric),
        last=last.get(sweep.metric),
        schedule=None if record is None else record.schedule,
        decision=None if record is None else record.decision,
    )
