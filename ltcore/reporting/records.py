"""Readers of what runs and sweeps wrote: ``run.json``, ``metrics.jsonl``, ``sweep.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ltcore import storage
from ltcore.errors import DataError
from ltcore.evaluation.paired import PairedDifference
from ltcore.evaluation.protocols import ordered_splits
from ltcore.text import storable_json


@dataclass(frozen=True)
class StoredRun:
    """One run directory. The fields are empty where the run wrote no file."""

    path: Path
    info: Mapping[str, Any]
    """``run.json``."""
    rows: list[dict[str, Any]]
    """``metrics.jsonl``, one mapping per epoch."""

    @property
    def id(self) -> str:
        return str(self.info.get("id", self.path.name))

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Returns (epochs, values) of the epochs that have this metric."""
        points = [(row["epoch"], row[metric]) for row in self.rows if row.get(metric) is not None]
        return [x for x, _ in points], [y for _, y in points]

    def tests(self) -> dict[str, dict[str, float | None]]:
        """Returns split -> metric -> value; empty before the run was tested."""
        return dict(self.info.get("test") or {})


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
    info: Mapping[str, Any]
    """``sweep.json``; during the search, with the ``trials`` that are found on disk."""
    trials: dict[str, StoredRun]
    baseline: StoredRun | None
    retrains: list[Retrain]

    def runs(self) -> list[StoredRun]:
        """Returns trials, baseline and retrains."""
        baseline = [self.baseline] if self.baseline else []
        return [*self.trials.values(), *baseline, *(r.run for r in self.retrains)]

    def of_role(self, role: str) -> list[Retrain]:
        """Returns the retrains of a role, 'winner' or 'baseline'."""
        return [r for r in self.retrains if r.role == role]


def _read(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file, {} where there is none.

    Unpaired surrogates, which JSON may contain, are escaped, because figures cannot draw them.
    """
    return dict(storable_json(storage.read_json(path) or {}))


def read_run(path: Path) -> StoredRun:
    """Reads what a run has left in directory ``path``; its record is empty where there is none."""
    return StoredRun(path, _read(path / "run.json"), storage.read_jsonl(path / "metrics.jsonl"))


def read_sweep(path: Path) -> StoredSweep:
    """Reads the sweep in directory ``path``, with the trials and retrains that exist so far."""
    if not (path / "sweep.json").exists():
        raise DataError(f"{path} has no sweep.json: give the directory of a sweep.")
    info = _read(path / "sweep.json")
    name = info.get("baseline") or "baseline"
    listed = {t["id"]: _inside(path, t["run_dir"]) for t in info.get("trials") or ()}
    baseline = listed.pop(name, _inside(path, f"trials/{name}"))
    trials = {trial: read_run(folder) for trial, folder in listed.items()}
    if "trials" not in info:
        folders = sorted(p.parent for p in path.glob("trials/*/run.json") if p.parent != baseline)
        trials = {folder.name: read_run(folder) for folder in folders}
    retrains = [Retrain(r["role"], r["seed"], read_run(_inside(path, r["run_dir"]))) for r in info.get("retrain") or ()]
    return StoredSweep(
        path,
        {**info, "trials": info.get("trials") or [_entry(info, trial, run) for trial, run in trials.items()]},
        trials,
        read_run(baseline) if (baseline / "run.json").exists() else None,
        sorted(retrains, key=lambda r: (r.role != "winner", r.seed)),
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


def _entry(sweep: Mapping[str, Any], trial: str, run: StoredRun) -> dict[str, Any]:
    """Returns what ``sweep.json`` will contain about a trial, during the search."""
    metric, config = sweep.get("metric"), run.info.get("config") or {}
    return {
        "id": trial,
        "status": run.info.get("status", "running"),
        "reason": run.info.get("reason"),
        "params": {key: config.get(key) for key in sweep.get("space") or ()},
        "epochs_done": run.info.get("epochs_done"),
        "best": (run.info.get("best") or {}).get(metric),
        "last": (run.info.get("last") or {}).get(metric),
    }


def difference_of(cell: Mapping[str, Any]) -> PairedDifference:
    """Converts one entry of ``comparison``."""
    return PairedDifference(cell["difference"], cell["low"], cell["high"], cell["distinguishable"], len(cell["winner"]))


def primary(sweep: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns the (split, metric) that the verdict is about.

    The split is the first test split; the metric is that of the selection where it was tested, otherwise top-1.
    """
    comparison = sweep.get("comparison") or {}
    splits = ordered_splits(comparison)
    if not splits:
        return None
    selected = str(sweep.get("metric", "")).rsplit("/", 1)[-1]
    return splits[0], selected if selected in comparison[splits[0]] else "top1"
