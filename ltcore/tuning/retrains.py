"""What is trained after a search, with paired seeds that are not the search's, and tested: the numbers of the report.

Each function trains what its part lacks and returns the fields of ``sweep.json`` for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltcore.config.records import RunRecord
from ltcore.config.retrained import AblationRecord, BalancedRecord, Comparison, RetrainRecord
from ltcore.data.shards.manifest import read_manifest
from ltcore.evaluation.paired import Tests, compare
from ltcore.evaluation.protocols import TRAIN_BALANCED
from ltcore.runtime.progress import ProgressDisplay
from ltcore.storage import join
from ltcore.tuning.ablation import ablated, terms_off
from ltcore.tuning.planned import TRAIN_SPLIT, has_alt
from ltcore.tuning.record import tested
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
        """Trains each term of the winner alone, and its controls.

        A winner of one term is that term alone, so its retrains are taken.
        """
        rows = list(ablated(self.setup.base, self.winner))
        only = len({row.term for row in rows}) == 1
        places = ["retrain/winner" if only and not row.control else f"ablation/{row.name}" for row in rows]
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
                )
                for row, place in zip(rows, places, strict=True)
            )
        }

    def _entries(self, folder: str) -> tuple[RetrainRecord, ...]:
        return tuple(
            RetrainRecord(role=role, seed=seed, run_dir=f"{folder}/{role}-seed{seed}")
            for seed in self.seeds
            for role in ROLES
        )

    def _changes(self, entry: RetrainRecord) -> Mapping[str, Any]:
        return self.winner if entry.role == "winner" else terms_off()

    def _train(self, stage: str, wanted: Mapping[str, Mapping[str, Any]], streamed: str = "") -> None:
        """Trains and tests the runs in these directories that are not there yet, each the recipe with its changes.

        ``streamed`` is the directory of the run that goes through Ray Train.
        """
        jobs = {}
        for where, changes in wanted.items():
            job = self.runs.job(where, int(where.rpartition("-seed")[2]), "retrain", changes)
            forget_other(job, self.runs.setup.uri)
            if not _is_tested(job.run_uri):
                jobs[job.label] = job
        if not jobs:
            return
        with self.display.stage(stage, expected=len(jobs)):
            label = self.runs.label(streamed)
            self.runs.run_all(jobs, streamed=label if label in jobs else "")

    def _tests(self, where: str) -> dict[int, Tests]:
        return {seed: tested(join(self.setup.uri, f"{where}-seed{seed}")) for seed in self.seeds}

    def _compared(self, entries: Sequence[RetrainRecord]) -> Comparison:
        """Compares winner and baseline, paired over seeds, per test split and metric."""
        tests: dict[str, dict[int, Tests]] = {role: {} for role in ROLES}
        for entry in entries:
            tests[entry.role][entry.seed] = tested(join(self.setup.uri, entry.run_dir))
        return compare(tests["winner"], tests["baseline"])


def _is_tested(run_uri: str) -> bool:
    record = RunRecord.read(run_uri)
    return record is not None and record.status == "finished" and record.test is not None
