"""Readers of what runs and sweeps wrote: ``run.json``, ``metrics.jsonl``, ``sweep.json``."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ltcore import storage
from ltcore.config.json_record import StoredRecord
from ltcore.config.records import Metrics, RunRecord, SweepRecord, TrialRecord
from ltcore.errors import DamagedFileError, DataError
from ltcore.evaluation.catalog import VALIDATION
from ltcore.evaluation.paired import PairedDifference
from ltcore.evaluation.protocols import ordered_splits
from ltcore.text import storable_json
from ltcore.tracking.jsonl_sink import read_metrics


@dataclass(frozen=True)
class StoredRun:
    """One run directory."""

    path: Path
    record: RunRecord | None
    """None of a run that never got as far as writing it."""
    rows: list[dict[str, Any]]
    """``metrics.jsonl``, one mapping per epoch."""

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Returns (epochs, values) of the epochs that have this metric."""
        points = [(row["epoch"], row[metric]) for row in self.rows if "epoch" in row and row.get(metric) is not None]
        return [x for x, _ in points], [y for _, y in points]

    def tests(self) -> dict[str, Metrics]:
        """Returns the test metrics as split -> metric -> value; empty before the run was tested."""
        return {} if self.record is None else dict(self.record.test or {})

    def last(self, metric: str) -> float | None:
        """Returns the metric at the end of the run, as the search scores its trials."""
        return None if self.record is None else self.record.last.get(metric)


@dataclass(frozen=True)
class Retrain:
    """A run of the winner's or the baseline's configuration with one of the paired seeds."""

    role: str
    seed: int
    run: StoredRun


@dataclass(frozen=True)
class StoredSweep:
    """One sweep directory."""

    path: Path
    record: SweepRecord
    """``sweep.json``; while the search still runs, with the ``trials`` that are found on disk."""
    trials: dict[str, StoredRun]
    baseline: StoredRun | None
    retrains: list[Retrain]
    tested: dict[str, StoredRun]
    """All runs that were tested, by name: the retrains, then those for ALT and of the ablation."""

    def runs(self) -> list[StoredRun]:
        """Returns trials, baseline and what was tested."""
        baseline = [self.baseline] if self.baseline else []
        return [*self.trials.values(), *baseline, *self.tested.values()]

    def of_role(self, role: str) -> list[Retrain]:
        """Returns the retrains of a role, 'winner' or 'baseline'."""
        return [r for r in self.retrains if r.role == role]


R = TypeVar("R", bound=StoredRecord)


def _read(kind: type[R], folder: Path) -> R | None:
    """Returns the record in a folder, or None where there is none.

    JSON may hold half of a surrogate pair, which pages cannot show; they are escaped.
    """
    file = folder / kind.FILE
    value = storage.read_json(file)
    return None if value is None else kind.from_json(storable_json(value), str(file))


def read_run(path: Path) -> StoredRun:
    """Reads the run in directory ``path``, as far as it has come.

    Raises DataError where its ``run.json`` is not the record of a run.
    """
    return StoredRun(path, _read(RunRecord, path), read_metrics(path / "metrics.jsonl"))


def read_sweep(path: Path, record: SweepRecord | None = None) -> StoredSweep:
    """Reads the sweep in directory ``path``, with its trials and retrains as far as they have come.

    ``record`` takes the place of ``sweep.json``. Raises DataError where there is neither.
    """
    if record is None:
        record = _read(SweepRecord, path)
    else:
        record = SweepRecord.from_json(storable_json(record.to_json()), str(path))
    if record is None:
        raise DataError(f"{path} has no sweep.json: give the directory of a sweep.")
    name = record.baseline or "baseline"
    baseline = _inside(path, f"trials/{name}")
    if record.trials is None:
        folders = sorted(p.parent for p in path.glob("trials/*/run.json") if p.parent != baseline)
        trials = {folder.name: read_run(folder) for folder in folders}
        found = (_entry(record, trial, run.record) for trial, run in trials.items() if run.record is not None)
        try:
            record = replace(record, trials=tuple(found))
        except ValueError as error:  # of a run that is listed, and gone
            raise DamagedFileError(f"{path}/{SweepRecord.FILE}: {error}. {storage.DAMAGED}") from None
    else:
        listed = {trial.id: _inside(path, trial.run_dir) for trial in record.trials}
        baseline = listed.pop(name, baseline)
        trials = {trial: read_run(folder) for trial, folder in listed.items()}
    retrains = [Retrain(r.role, r.seed, read_run(_inside(path, r.run_dir))) for r in record.retrain or ()]
    retrains.sort(key=lambda r: (r.role != "winner", r.seed))
    further = [run.run_dir for run in (record.balanced.runs if record.balanced else ())]
    further += [where for row in record.ablation or () for where in row.run_dirs if not where.startswith("retrain/")]
    return StoredSweep(
        path,
        record,
        trials,
        read_run(baseline) if (baseline / RunRecord.FILE).exists() else None,
        retrains,
        {
            **{f"{r.role}-seed{r.seed}": r.run for r in retrains},
            **{where.removeprefix("ablation/"): read_run(_inside(path, where)) for where in further},
        },
    )


def _inside(sweep: Path, run_dir: str) -> Path:
    """Returns ``run_dir`` below the directory of its sweep.

    Raises DataError for a path outside, so that a sweep from elsewhere cannot show other directories of this machine.
    """
    if PurePosixPath(run_dir).is_absolute() or ".." in PurePosixPath(run_dir).parts:
        raise DataError(
            f"{sweep / 'sweep.json'}: run_dir {run_dir!r} lies outside the sweep, expected a path like trials/00000. Copy the "
            "sweep again from where it was made."
        )
    return sweep / run_dir


def _entry(sweep: SweepRecord, trial: str, run: RunRecord) -> TrialRecord:
    """Returns what ``sweep.json`` will say about a trial of a search that is not over."""
    return TrialRecord(
        id=trial,
        run_dir=f"trials/{trial}",
        status=run.status,
        reason=run.reason,
        params={key: run.config.get(key) for key in sweep.space},
        epochs_done=run.epochs_done,
        best=run.best.get(sweep.metric),
        last=run.last.get(sweep.metric),
    )


def primary(sweep: SweepRecord) -> tuple[str, str, PairedDifference] | None:
    """Returns (split, metric, difference) of the verdict, or None where there is no comparison.

    It is the first test split, with the test metric of the same name as the selection metric, else the balanced accuracy.
    """
    comparison = sweep.comparison or {}
    split = next(iter(ordered_splits(comparison)), None)
    if split is None:
        return None
    cells = comparison[split]
    metric = test_metric(sweep, cells)
    return None if metric is None else (split, metric, cells[metric])


def test_metric(sweep: SweepRecord, measured: Container[str]) -> str | None:
    """Returns the test metric of the same name as the selection metric, else the balanced accuracy; None without either."""
    names = (sweep.metric.removeprefix(VALIDATION), "balanced_accuracy")
    return next((name for name in names if name in measured), None)
