"""Reads what runs and sweeps wrote: ``run.json``, ``metrics.jsonl``, ``sweep.json``. Plain values, no behavior."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ltcore import storage
from ltcore.errors import DataError
from ltcore.evaluation.paired import PairedDifference
from ltcore.text import storable_json


@dataclass(frozen=True)
class StoredRun:
    """One run directory. A run that never got as far as writing a file has empty fields."""

    path: Path
    info: Mapping[str, Any]
    """``run.json``."""
    rows: list[dict[str, Any]]
    """``metrics.jsonl``, one mapping per epoch."""

    @property
    def id(self) -> str:
        return str(self.info.get("id", self.path.name))

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of the epochs that have this metric."""
        points = [(row["epoch"], row[metric]) for row in self.rows if row.get(metric) is not None]
        return [x for x, _ in points], [y for _, y in points]

    def tests(self) -> dict[str, dict[str, float | None]]:
        """split -> metric -> value; empty before the run was tested."""
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
    """``sweep.json``; while the search still runs, with the ``trials`` that are found on disk."""
    trials: dict[str, StoredRun]
    baseline: StoredRun | None
    retrains: list[Retrain]

    def runs(self) -> list[StoredRun]:
        baseline = [self.baseline] if self.baseline else []
        return [*self.trials.values(), *baseline, *(r.run for r in self.retrains)]

    def of_role(self, role: str) -> list[Retrain]:
        return [r for r in self.retrains if r.role == role]


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is none; figures take no half of a surrogate pair, which JSON may hold."""
    return dict(storable_json(storage.read_json(path) or {}))


def read_run(path: Path) -> StoredRun:
    return StoredRun(path, _read(path / "run.json"), storage.read_jsonl(path / "metrics.jsonl"))


def read_sweep(path: Path) -> StoredSweep:
    """The sweep in directory ``path``, its trials and retrains as far as they have come."""
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
    """``run_dir`` below the directory of its sweep: a sweep from elsewhere shows no other directories of this machine."""
    if PurePosixPath(run_dir).is_absolute() or ".." in PurePosixPath(run_dir).parts:
        raise DataError(
            f"{sweep / 'sweep.json'}: run_dir {run_dir!r} lies outside the sweep, expected a path like trials/00000. Copy the "
            "sweep again from where it was made."
        )
    return sweep / run_dir


def _entry(sweep: Mapping[str, Any], trial: str, run: StoredRun) -> dict[str, Any]:
    """What ``sweep.json`` will say about a trial of a search that is not over."""
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


def ordered_splits(splits: Iterable[str]) -> list[str]:
    """The GLT test first, then CLT, then others."""
    known = list(PROTOCOLS)
    return sorted(splits, key=lambda s: (known.index(s) if s in known else len(known), s))


PROTOCOLS = {
    "test_gbl": ("GLT", "tested with classes and attributes balanced"),
    "test_cbl": ("CLT", "tested with classes balanced, attributes as they come"),
    "test": ("test", "the test split"),
}
"""Test split -> (name of the protocol, what it means) for a model trained on long-tailed classes and attributes."""

METRICS = {
    "top1": "top-1",
    "macro_precision": "macro precision",
    "glt_f1": "GLT F1",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "worst_class": "worst class",
}


ALT = ("ALT", "trained with classes balanced, tested with classes and attributes balanced")


def protocol(split: str, info: Mapping[str, Any]) -> tuple[str, str]:
    """(name, meaning) of a test for what ``run.json`` or ``sweep.json`` says of the training: its split decides."""
    trained_on = (info.get("identity") or info.get("config") or {}).get("data.train_split", "train")
    if trained_on == "train_cbl":
        return ALT if split == "test_gbl" else (split, "trained with classes balanced")
    return PROTOCOLS.get(split, (split, ""))


def metric_name(metric: str) -> str:
    """'top1' -> 'top-1', 'attribute/red' -> 'attribute red', 'val/top1' -> 'validation top-1'."""
    if metric.startswith("val/"):
        return f"validation {metric_name(metric.removeprefix('val/'))}"
    return " ".join(METRICS.get(word, word) for word in metric.split("/"))


def difference_of(cell: Mapping[str, Any]) -> PairedDifference:
    """One entry of ``comparison``."""
    return PairedDifference(cell["difference"], cell["low"], cell["high"], cell["distinguishable"], len(cell["winner"]))


def primary(sweep: Mapping[str, Any]) -> tuple[str, str] | None:
    """(split, metric) that the verdict is about: the selection metric's namesake on the first test split, else top-1."""
    comparison = sweep.get("comparison") or {}
    splits = ordered_splits(comparison)
    if not splits:
        return None
    selected = str(sweep.get("metric", "")).rsplit("/", 1)[-1]
    return splits[0], selected if selected in comparison[splits[0]] else "top1"


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key's shortest ending that no other key shares; two words at least where there are two."""
    keys = list(keys)
    result = {}
    for key in keys:
        words = key.split(".")
        for take in range(min(2, len(words)), len(words) + 1):
            short = ".".join(words[-take:])
            if sum(k == short or k.endswith("." + short) for k in keys) == 1:
                break
        result[key] = short
    return result


def value_text(value: Any) -> str:
    """A configuration value as one reads it: 0.123457, off, a, b."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value)


def parse_range(spec: str) -> tuple[str, float, float] | None:
    """(kind, low, high) of a swept range spelled 'log:0.02,1', 'uniform:0,1' or 'int:1,4'; None for a list."""
    kind, _, ends = spec.partition(":")
    if kind not in ("log", "uniform", "int"):
        return None
    low, high = map(float, ends.split(","))
    return kind, low, high


def listed_values(spec: str) -> list[str]:
    """The values of 'choice:1,null' or 'grid:...' as ``value_text`` writes them."""
    spelled = {"null": "off", "true": "yes", "false": "no"}
    return [spelled.get(word, _number_text(word)) for word in spec.partition(":")[2].split(",")]


def _number_text(word: str) -> str:
    try:
        return value_text(float(word))
    except ValueError:
        return word  # a name


def range_text(spec: str) -> str:
    """'log:0.02,1.0' -> '0.02 to 1, logarithmic'; 'choice:a,null' -> 'a, off'."""
    found = parse_range(spec)
    if found is None:
        return ", ".join(listed_values(spec))
    kind, low, high = found
    return f"{low:g} to {high:g}" + {"log": ", logarithmic", "int": ", whole numbers", "uniform": ""}[kind]
