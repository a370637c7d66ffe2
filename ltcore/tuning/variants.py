"""A comparison of named variants of one recipe: each trained to its end with the same seeds, one chosen, all tested.

Variants follow those that they start from. For the ALT protocol each is trained a second time, on balanced classes. The
choice looks at validation alone and is written down before a test image is read; the tests then go on from the end of the
trained runs.
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
from ltcore.evaluation.paired import Tests, compare
from ltcore.evaluation.protocols import ALT, PROTOCOLS, TRAIN_BALANCED
from ltcore.reporting.format import percent
from ltcore.runtime.interrupts import saving_first
from ltcore.runtime.placement import Scaling
from ltcore.tuning.planned import TRAIN_SPLIT
from ltcore.tuning.record import tested
from ltcore.tuning.rungs import Cohort, Course, standing
from ltcore.tuning.runs import TimeIsUp
from ltcore.tuning.search import SearchPlan, run_course
from ltcore.tuning.sweep import Points, Sweep
from ltcore.tuning.trainable import trial_job
from ltcore.tuning.trials import TrialBook, folder_of, read_records
from ltcore.tuning.winner import finished_of, num_settled


class VariantSweep(Sweep):
    """A sweep over variants instead of a space."""

    def _stages(self) -> None:
        self.search()
        if self.choose() and not self.watch.out_of_time.is_set():
            with saving_first(self.watch, self.display.say), contextlib.suppress(TimeIsUp):
                self.test()

    # ---- training

    def search(self) -> None:
        shown, interruptible = self.display.stage, saving_first(self.watch, self.display.say)
        with shown("train", expected=self.setup.sweep.size), interruptible, contextlib.suppress(TimeIsUp):
            for number, (is_stage2, points) in enumerate(self._stages_of_training()):
                self._train(number, self._startable(points), is_stage2)
        self._collect()

    def _train(self, number: int, points: Points, is_stage2: bool) -> None:
        setup = self.setup
        book = TrialBook(setup.uri, setup.base, setup.sweep.metric, 0.0, (), self._decided, self._part_ended)
        while not (course := Course(iter([Cohort(number, points, (), book)]))).over:
            run_course(self._plan_of_stage2() if is_stage2 else self._plan(), course, self._ears())
            self.runs.raise_if_over()
            if not self._unshare(points):
                break

    def _stages_of_training(self) -> list[tuple[bool, Points]]:
        """Returns (is it stage 2, trials) in the order of training: each after what it starts from."""
        sweep = self.setup.sweep
        stages: dict[tuple[int, bool], dict[str, Mapping[str, Any]]] = {}
        for name, params in self._points().items():
            stages.setdefault((sweep.depth(self._variant_of[name]), STAGE1 in params), {})[name] = params
        return [(is_stage2, stages[depth, is_stage2]) for depth, is_stage2 in sorted(stages)]

    def _startable(self, points: Points) -> Points:
        """Returns the trials whose start is there; the others are noted as lost with it."""
        parents = {name: parent for name in points if (parent := self._parent_of(name)) is not None}
        records = read_records(self.setup.uri, set(parents.values()))
        startable = {}
        for name, params in points.items():
            parent = parents.get(name)
            state = "finished" if parent is None else standing(records[parent])
            if state == "finished":
                startable[name] = params
            elif state == "failed" or parent in self._lost:
                self._lost[name] = f"{parent}, from which it starts, failed"
                if state == "failed" or parent in self._barred:
                    self._barred.add(name)
        return startable

    def _points(self) -> Points:
        """Returns name -> parameters of all trials, seed by seed, so that early results compare all variants."""
        sweep = self.setup.sweep
        points = {}
        for seed in self._seeds:
            for variant in sweep.variants:
                for balanced in (False, True)[: 1 + sweep.alt]:
                    start = trial_of(sweep.parent(variant) or "", seed, balanced)
                    params = {**sweep.started_from(variant, folder_of(self.setup.uri, start)), "seed": seed}
                    if balanced and STAGE1 not in params:
                        params[TRAIN_SPLIT] = TRAIN_BALANCED
                    points[trial_of(variant, seed, balanced)] = params
        return points

    @cached_property
    def _variant_of(self) -> dict[str, str]:
        """Returns trial -> variant."""
        return {
            trial_of(variant, seed, balanced): variant
            for variant in self.setup.sweep.variants
            for seed in self._seeds
            for balanced in (False, True)
        }

    def _parent_of(self, trial: str) -> str | None:
        """Returns the trial from which this one starts."""
        variant = self._variant_of[trial]
        parent = self.setup.sweep.parent(variant)
        return None if parent is None else f"{parent}{trial.removeprefix(variant)}"

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
            balanced = tuple(trial_of(name, seed, True) for seed in self._seeds) if sweep.alt else ()
            failed = [by_name[t].reason for t in (*names, *balanced) if by_name[t].status != "finished"]
            done = [record for trial in names if (record := records[trial]) is not None and record.status == "finished"]
            val = values_of([_of_val(record) for record in done])
            no_value = not failed and any(value is None for value in val.get(sweep.metric, (None,)))
            found.append(
                VariantRecord(
                    name=name,
                    changes=changes,
                    trials=names,
                    alt_trials=balanced,
                    reason=failed[0] if failed else f"{sweep.metric} has no value" if no_value else "",
                    seconds=() if failed else tuple(self._seconds(records, trial) for trial in names),
                    trained_parameters=next((record.trained_parameters for record in done), None),
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
        names = {trial for variant in ranked for trial in (*variant.trials, *variant.alt_trials)}
        with self.display.stage("test", expected=len(names)):
            # the last stage first: it asks whether what it started from is finished, which a run that is being tested is not
            for is_stage2, points in reversed(self._stages_of_training()):
                plan = self._plan_of_stage2() if is_stage2 else self._plan()
                jobs = {n: trial_job(plan.trial, n, params, test=True) for n, params in points.items() if n in names}
                self.runs.run_all(jobs, engine=plan.trial.engine)
        self.save(variants=self._tested())

    def _tested(self) -> tuple[VariantRecord, ...]:
        variants, uri = self.record.variants, self.setup.uri

        def of(variant: VariantRecord, place: int) -> Tests:
            found = tested(folder_of(uri, variant.trials[place]))
            if not variant.alt_trials:
                return found
            balanced = tested(folder_of(uri, variant.alt_trials[place]))
            return {**found, ALT: balanced[PROTOCOLS[ALT].test_split]}

        tests = {v.name: {seed: of(v, i) for i, seed in enumerate(self._seeds)} for v in variants if not v.reason}
        chosen = variants[0].name

        def with_tests(variant: VariantRecord) -> VariantRecord:
            if variant.reason:
                return variant
            rows = list(tests[variant.name].values())
            test = {split: values_of([row[split] for row in rows]) for split in rows[0]}
            difference = None if variant.name == chosen else compare(tests[chosen], tests[variant.name])
            return replace(variant, test=test, difference=difference)

        return tuple(map(with_tests, variants))

    def _seconds(self, records: Mapping[str, RunRecord | None], trial: str) -> float:
        """Returns the time of training, that of all that it starts from included."""
        record, parent = records[trial], self._parent_of(trial)
        assert record is not None and record.seconds is not None, "it has finished"
        return record.seconds + (0.0 if parent is None else self._seconds(records, parent))


def trial_of(variant: str, seed: int, balanced: bool = False) -> str:
    """Returns the name of a variant's trial, or of the one that is trained on balanced classes."""
    return f"{variant}{'.alt' if balanced else ''}-seed{seed}"


def _of_val(record: RunRecord) -> dict[str, float | None]:
    return {key: value for key, value in record.last.items() if key.startswith("val/")}


def values_of(rows: Sequence[Mapping[str, float | None]]) -> dict[str, tuple[float | None, ...]]:
    """Returns metric -> values, one for each row."""
    return {metric: tuple(row.get(metric) for row in rows) for metric in (rows[0] if rows else {})}


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there)
