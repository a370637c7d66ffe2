"""A comparison of named variants of one recipe: each trained to its end with the same seeds, one chosen, all tested.

Variants of stage 2 follow those that they start from. The choice looks at validation alone and is written down before a
test image is read; the tests then go on from the end of the trained runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ltcore.config.keys import comes_from_stage1
from ltcore.config.records import RunRecord, TrialRecord, VariantRecord
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import STAGE1
from ltcore.evaluation.catalog import goodness, title_of
from ltcore.evaluation.paired import compare
from ltcore.reporting.format import percent
from ltcore.runtime.placement import Scaling
from ltcore.tuning.record import tested
from ltcore.tuning.rungs import Cohort, Course, standing
from ltcore.tuning.runs import TimeIsUp
from ltcore.tuning.search import Ears, SearchPlan, run_course
from ltcore.tuning.sweep import Points, Sweep
from ltcore.tuning.trainable import trial_job
from ltcore.tuning.trials import TrialBook, folder_of, read_records
from ltcore.tuning.winner import finished_of, num_settled


class VariantSweep(Sweep):
    """A sweep over variants instead of a space."""

    def _stages(self) -> None:
        self.search()
        if self.choose() and not self.watch.out_of_time.is_set():
            with contextlib.suppress(TimeIsUp):
                self.test()

    # ---- training

    def search(self) -> None:
        with self.display.stage("train", expected=self.setup.sweep.size), contextlib.suppress(TimeIsUp):
            self._train(0, self._stage1, self._plan())
            self._train(1, self._startable(), self._plan_of_stage2())
        self._collect()

    def _train(self, number: int, points: Points, plan: SearchPlan) -> None:
        setup = self.setup
        book = TrialBook(setup.uri, setup.base, setup.sweep.metric, 0.0, (), self._decided, self._part_ended)
        course = Course(iter([Cohort(number, points, (), book)]))
        if not course.over:
            run_course(plan, course, Ears(lambda: self.watch.stop_wanted, self._lost.__setitem__))
            self.runs.raise_if_stalled()

    @cached_property
    def _stage1(self) -> Points:
        return {name: params for name, params in self._points().items() if STAGE1 not in params}

    def _startable(self) -> Points:
        """Returns the trials of stage 2 whose stage 1 is there; the others are noted as lost with it."""
        of_stage2 = {name: params for name, params in self._points().items() if STAGE1 in params}
        places = {folder_of(self.setup.uri, name): name for name in self._stage1}
        firsts = read_records(self.setup.uri, {places[params[STAGE1]] for params in of_stage2.values()})
        startable = {}
        for name, params in of_stage2.items():
            first = places[params[STAGE1]]
            if standing(firsts[first]) == "finished":
                startable[name] = params
            elif standing(firsts[first]) == "failed":
                self._lost[name] = f"ConfigError: its stage 1, {first}, failed"
        return startable

    def _points(self) -> Points:
        """Returns name -> parameters of all trials, seed by seed, so that early results compare all variants."""
        sweep, uri = self.setup.sweep, self.setup.uri
        points = {}
        for seed in self._seeds:
            for variant, changes in sweep.variants.items():
                params = {**changes, "seed": seed}
                if STAGE1 in changes:
                    params[STAGE1] = folder_of(uri, trial_of(changes[STAGE1], seed))
                points[trial_of(variant, seed)] = params
        return points

    @property
    def _seeds(self) -> range:
        return range(self.setup.seed, self.setup.seed + self.setup.sweep.seeds)

    def _part_ended(self, trial: str, params: Mapping[str, Any], state: str, record: RunRecord | None) -> None:
        super()._part_ended(trial, {}, state, record)  # its name says what it is

    def _plan_of_stage2(self) -> SearchPlan:
        """Returns the plan of trials of stage 2: one process each, and nothing said that they take from stage 1."""
        plan, scaling = self._plan(), self.setup.placement.scaling
        own = {key: value for key, value in self.setup.base.to_flat().items() if not comes_from_stage1(key)}
        one = Scaling(cpus_per_worker=scaling.cpus_per_worker, gpus_per_worker=scaling.gpus_per_worker)
        config = RunConfig(name="stage2").replace(own).to_dict()
        return replace(plan, trial=replace(plan.trial, config=config, scaling=one, engine="trial"))

    # ---- choice and test

    def choose(self) -> bool:
        """Chooses the variant that is best on validation. Returns False where time ran out before all were settled."""
        sweep, trials = self.setup.sweep, self.record.trials or ()
        if num_settled(trials) < sweep.size and self.watch.out_of_time.is_set():
            self.display.say("time is up before every variant was trained; the same command continues")
            return False
        finished_of(trials, sweep.name, sweep.size)
        variants = self._variants(trials)
        first = variants[0]
        if first.reason:
            self.save(variants=variants, winner=None)
            return False
        self.save(variants=variants, winner=first.name)
        self.display.say(
            f"chosen on validation: {first.name} ({title_of(sweep.metric)} {percent(_mean(first.val[sweep.metric]))})"
        )
        return True

    def _variants(self, trials: Sequence[TrialRecord]) -> tuple[VariantRecord, ...]:
        """Returns what training came to, the best first."""
        sweep, by_name = self.setup.sweep, {trial.id: trial for trial in trials}
        records = read_records(self.setup.uri, by_name)
        found = []
        for name, changes in sweep.variants.items():
            names = tuple(trial_of(name, seed) for seed in self._seeds)
            failed = [by_name[trial].reason for trial in names if by_name[trial].status != "finished"]
            first = [trial_of(changes[STAGE1], seed) for seed in self._seeds] if STAGE1 in changes else []
            done = [record for trial in names if (record := records[trial]) is not None and record.status == "finished"]
            val = values_of([_of_val(record) for record in done])
            no_value = not failed and any(value is None for value in val.get(sweep.metric, (None,)))
            found.append(
                VariantRecord(
                    name=name,
                    changes=changes,
                    trials=names,
                    reason=failed[0] if failed else f"{sweep.metric} has no value" if no_value else "",
                    seconds=() if failed else _seconds(records, names, first),
                    val=val,
                )
            )

        def place(variant: VariantRecord) -> tuple[bool, float]:
            worst = bool(variant.reason)
            return worst, 0.0 if worst else -goodness(sweep.metric, _mean(variant.val[sweep.metric]))

        return tuple(sorted(found, key=place))

    def test(self) -> None:
        """Tests the last weights of every ranked variant, and compares the chosen one with each, paired over seeds."""
        ranked = [variant for variant in self.record.variants if not variant.reason]
        names = [trial for variant in ranked for trial in variant.trials]
        with self.display.stage("test", expected=len(names)):
            # stage 2 first: it asks whether its stage 1 is finished, which a run that is being tested is not
            for is_first, plan in ((False, self._plan_of_stage2()), (True, self._plan())):
                points = {n: p for n, p in self._points().items() if n in names and (STAGE1 not in p) == is_first}
                jobs = {name: trial_job(plan.trial, name, params, test=True) for name, params in points.items()}
                self.runs.run_all(jobs, engine=plan.trial.engine)
        self.save(variants=self._tested())

    def _tested(self) -> tuple[VariantRecord, ...]:
        variants, uri = self.record.variants, self.setup.uri
        tests = {
            v.name: {seed: tested(folder_of(uri, trial)) for seed, trial in zip(self._seeds, v.trials, strict=True)}
            for v in variants
            if not v.reason
        }
        chosen = variants[0].name

        def with_tests(variant: VariantRecord) -> VariantRecord:
            if variant.reason:
                return variant
            rows = list(tests[variant.name].values())
            test = {split: values_of([row[split] for row in rows]) for split in rows[0]}
            difference = None if variant.name == chosen else compare(tests[chosen], tests[variant.name])
            return replace(variant, test=test, difference=difference)

        return tuple(map(with_tests, variants))


def trial_of(variant: str, seed: int) -> str:
    """Returns the name of a variant's trial."""
    return f"{variant}-seed{seed}"


def _of_val(record: RunRecord) -> dict[str, float | None]:
    return {key: value for key, value in record.last.items() if key.startswith("val/")}


def values_of(rows: Sequence[Mapping[str, float | None]]) -> dict[str, tuple[float | None, ...]]:
    """Returns metric -> values, one for each row."""
    return {metric: tuple(row.get(metric) for row in rows) for metric in (rows[0] if rows else {})}


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there)


def _seconds(records: Mapping[str, RunRecord | None], names: Sequence[str], first: Sequence[str]) -> tuple[float, ...]:
    """Returns the time of training for each seed, that of stage 1 included."""

    def spent(name: str) -> float:
        record = records[name]
        assert record is not None and record.seconds is not None, "it has finished"
        return record.seconds

    return tuple(spent(name) + (spent(first[i]) if first else 0.0) for i, name in enumerate(names))
