"""What is trained after a search, with paired seeds that are not the search's, and tested: the numbers of the report.

Each function trains what its part lacks and returns the fields of ``sweep.json`` for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltcore.config.records import RunRecord
from ltcore.config.retrained import AblationRecord, BalancedRecord, Comparison, RetrainRecord, SettingRecord
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import LtcoreError
from ltcore.evaluation.paired import Tests, compare
from ltcore.evaluation.protocols import TRAIN_BALANCED
from ltcore.runtime.progress import ProgressDisplay
from ltcore.storage import join
from ltcore.training.run import Job
from ltcore.tuning.ablation import ablated, candidates, setting_of, term_alone, terms_off
from ltcore.tuning.messages import last_line
from ltcore.tuning.planned import TRAIN_SPLIT, has_alt
from ltcore.tuning.record import tested
from ltcore.tuning.rungs import ranked, standing
from ltcore.tuning.runs import Runs, SweepSetup, forget_other

ROLES: tuple[Literal["winner", "baseline"], ...] = ("winner", "baseline")


@dataclass(frozen=True)
class Retrains:
    """Trains configurations of a finished search again."""

    setup: SweepSetup
    runs: Runs
    display: ProgressDisplay
    winner: Mapping[str, Any]
    """Parameters of the winner."""
    trials: Mapping[str, Mapping[str, Any]]
    """Parameters of the trials that have a value on validation, the winner first and then the best."""

    @property
    def seeds(self) -> range:
        """Returns the paired seeds. The search's own is not among them: what chose does not report."""
        return range(self.setup.seed + 1, self.setup.seed + 1 + self.setup.sweep.retrain_seeds)

    def pairs(self) -> dict[str, Any]:
        """Trains winner and baseline."""
        setup, first = self.setup, f"retrain/winner-seed{self.seeds[0]}"
        one_cpu_node = setup.placement.engine == "trial" and setup.cluster.local and not setup.cluster.gpus
        streamed = first if setup.sweep.train_engine_retrain and one_cpu_node else ""
        entries = self._entries("retrain")
        self._train("retrain", {entry.run_dir: self._changes(entry) for entry in entries}, streamed)
        return {"retrain": entries, "comparison": self._compared(entries)}

    def balanced(self) -> dict[str, Any]:
        """Trains winner and baseline on the split with balanced classes, where the data have it."""
        if not has_alt(self.setup.sweep, self.setup.base, read_manifest(self.setup.data_uri)):
            return {"balanced": BalancedRecord(runs=(), comparison={})}
        entries = self._entries("alt")
        changes = {e.run_dir: {**self._changes(e), TRAIN_SPLIT: TRAIN_BALANCED} for e in entries}
        self._train("retrain for ALT", changes)
        return {"balanced": BalancedRecord(runs=entries, comparison=self._compared(entries))}

    def ablation(self) -> dict[str, Any]:
        """Trains each term of the winner alone at the setting that is best so, and its controls at the same.

        A winner of one term is that term alone, so its retrains are taken, unless it is its own control there.
        """
        found = self._candidates()
        settings = self._tried({term: of for term, of in found.items() if len(of) > 1})
        chosen: dict[str, Mapping[str, Any]] = {term: next(iter(of.values())) for term, of in found.items() if of}
        chosen |= {term: of[0].params for term, of in settings.items()}
        rows = list(ablated(self.setup.base, self.winner, chosen))
        places = [f"ablation/{row.name}" for row in rows]
        if len(found) == 1 and chosen[rows[0].term] == setting_of(self.winner, rows[0].term):
            places[0] = "retrain/winner"
        wanted = {
            f"{place}-seed{seed}": row.changes
            for row, place in zip(rows, places, strict=True)
            if place != "retrain/winner"
            for seed in self.seeds
        }
        self._train("ablation", wanted)
        tests = {row.name: self._tests(place) for row, place in zip(rows, places, strict=True)}
        baseline = self._tests("retrain/baseline")
        return {
            "ablation": tuple(
                AblationRecord(
                    term=row.term,
                    control=row.control,
                    without=row.without,
                    changes=row.changes,
                    seeds=tuple(self.seeds),
                    run_dirs=tuple(f"{place}-seed{seed}" for seed in self.seeds),
                    over_baseline=compare(tests[row.name], baseline),
                    term_over_control=compare(tests[row.term], tests[row.name]) if row.control else None,
                    settings=None if row.control else settings.get(row.term),
                )
                for row, place in zip(rows, places, strict=True)
            )
        }

    def _candidates(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns for each term of the winner the settings that it may have alone, each under a trial that had it."""
        base, winner = self.setup.base, self.winner
        terms = base.replace(winner).objective.active_terms()
        found = {term: candidates(base, winner, term, self.trials) for term in terms}
        if len(found) == 1:  # it was alone in the search, which has chosen its setting
            ((term, of),) = found.items()
            own = setting_of(winner, term)
            found[term] = {trial: setting for trial, setting in of.items() if setting == own} or of
        return found

    def _tried(self, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, tuple[SettingRecord, ...]]:
        """Trains each term alone with each of its settings, and ranks these on validation, the best first.

        That is one run for each, with the search's seed and to its end: what chooses is neither tested nor reported.
        """
        setup = self.setup
        places = {
            (term, trial): f"ablation/{term}-trial{trial}-seed{setup.seed}" for term in found for trial in found[term]
        }
        wanted = {place: term_alone(self.winner, term, found[term][trial]) for (term, trial), place in places.items()}
        self._train("settings for the ablation", wanted, kind="trial")
        settings = {}
        for term, of in found.items():
            records = {trial: RunRecord.read(join(setup.uri, places[term, trial])) for trial in of}
            values = {
                trial: value
                for trial, record in records.items()
                if record is not None
                and record.status == "finished"
                and (value := record.last.get(setup.sweep.metric)) is not None
            }
            if not values:
                raise LtcoreError(_why_none(term, records.values(), setup.sweep.metric))
            settings[term] = tuple(
                SettingRecord(trial=trial, params=of[trial], run_dir=places[term, trial], value=values[trial])
                for trial in ranked(values, setup.sweep.metric)
            )
        return settings

    def _entries(self, folder: str) -> tuple[RetrainRecord, ...]:
        return tuple(
            RetrainRecord(role=role, seed=seed, run_dir=f"{folder}/{role}-seed{seed}")
            for seed in self.seeds
            for role in ROLES
        )

    def _changes(self, entry: RetrainRecord) -> Mapping[str, Any]:
        return self.winner if entry.role == "winner" else terms_off()

    def _train(
        self, stage: str, wanted: Mapping[str, Mapping[str, Any]], streamed: str = "", kind: str = "retrain"
    ) -> None:
        """Trains the runs in these directories that are not there yet, each the recipe with its changes.

        Retrains are tested. ``streamed`` is the directory of the run that goes through Ray Train.
        """
        jobs = {}
        for where, changes in wanted.items():
            job = self.runs.job(where, int(where.rpartition("-seed")[2]), kind, changes)
            forget_other(job, self.runs.setup.uri)
            if not _is_over(job):
                jobs[job.label] = job
        if not jobs:
            return
        with self.display.stage(stage, expected=len(jobs)):
            label = self.runs.label(streamed)
            self.runs.run_all(jobs, streamed=label if label in jobs else "", may_fail=kind == "trial")

    def _tests(self, where: str) -> dict[int, Tests]:
        return {seed: tested(join(self.setup.uri, f"{where}-seed{seed}")) for seed in self.seeds}

    def _compared(self, entries: Sequence[RetrainRecord]) -> Comparison:
        """Compares winner and baseline, paired over seeds, per test split and metric."""
        tests: dict[str, dict[int, Tests]] = {role: {} for role in ROLES}
        for entry in entries:
            tests[entry.role][entry.seed] = tested(join(self.setup.uri, entry.run_dir))
        return compare(tests["winner"], tests["baseline"])


def _is_over(job: Job) -> bool:
    """Tells whether nothing is left to do of a run: it was tested, or is not to be and has finished or failed for good."""
    record = RunRecord.read(job.run_uri)
    if job.info.test:
        return record is not None and record.status == "finished" and record.test is not None
    return standing(record) in ("finished", "failed")


def _why_none(term: str, records: Iterable[RunRecord | None], metric: str) -> str:
    reasons = sorted(
        {last_line(record.reason) for record in records if record is not None and record.status == "failed"}
    )
    first = f" ({reasons[0]})" if reasons else ""
    return (
        f"sweep.ablation=true trains {term} alone, but with none of its settings it reached the end with a value of "
        f"{metric}{first}. To do without, give sweep.ablation=false."
    )
