"""Which trials a sweep has, which of them are settled, and what became of each; read from the run directories alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ltcore.config.sweep_space import SweepConfig, grid_points, sample_space
from ltcore.data.storage import join
from ltcore.runtime.files import load_json, save_json, subdirectories

BY_SCHEDULER = "ended by the scheduler"
BY_TIME = "ended by the time limit (--max-hours)"


def known_trials(sweep: SweepConfig, seed: int, sizes: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Name -> parameters of every trial of a random or grid search.

    ``sizes`` are the numbers of trials that the sweep has had, rising: trials that are added later leave those that were
    there before as they are.
    """
    if sweep.search == "grid":
        return {_name(t): dict(point) for t, point in enumerate(grid_points(sweep.space))}
    points: dict[str, dict[str, Any]] = {}
    for size in sizes:
        for t in range(len(points), size):
            points[_name(t)] = dict(sample_space(sweep.space, t, num_trials=size, seed=seed))
    return points


def _name(number: int) -> str:
    return f"{number:05d}"


def settled(sweep_uri: str, name: str) -> bool:
    """Whether the trial has come to what it will come to: its end, a stop by the scheduler, or an error of its own."""
    record = load_json(join(sweep_uri, "trials", name, "run.json"))
    if record is None:
        return False
    return record["status"] in ("finished", "failed") or str(record["reason"]).startswith(BY_SCHEDULER)


def failed_entry(name: str, params: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """A trial that never came to write a record: its workers could not be started, or died at once."""
    nothing = {"epochs_done": 0, "best": None, "last": None}
    return {
        "id": name,
        "run_dir": f"trials/{name}",
        "status": "failed",
        "reason": reason,
        "params": dict(params),
        **nothing,
    }


def collect(
    sweep_uri: str, sweep: SweepConfig, cut: Collection[str], out_of_time: bool, unborn: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """What every trial came to; says in the ``run.json`` of those that did not reach the end who ended them.

    Args:
        unborn: entries of trials that failed before they wrote a record.
        cut: trials that the time limit ended; where ``out_of_time``, also those that nobody has heard the end of.
    """
    found = []
    for name in subdirectories(join(sweep_uri, "trials")):
        where = join(sweep_uri, "trials", name, "run.json")
        record = load_json(where)
        if record is None or record["kind"] != "trial":
            continue
        reason = str(record["reason"])
        if record["status"] in ("running", "stopped") and not reason.startswith((BY_SCHEDULER, BY_TIME)):
            limited = name in cut or (out_of_time and record["status"] == "running")
            words = BY_TIME if limited else BY_SCHEDULER
            record |= {"status": "stopped", "reason": f"{words} after epoch {record['epochs_done']}"}
            save_json(where, record)
        found.append(_entry(name, record, sweep))
    known = {entry["id"] for entry in found}
    return sorted([*found, *(entry for name, entry in unborn.items() if name not in known)], key=lambda e: e["id"])


def _entry(name: str, record: Mapping[str, Any], sweep: SweepConfig) -> dict[str, Any]:
    return {
        "id": name,
        "run_dir": f"trials/{name}",
        "status": record["status"],
        "reason": record["reason"],
        "params": {key: record["config"].get(key) for key in sweep.space},
        "epochs_done": record["epochs_done"],
        "best": record["best"].get(sweep.metric),
        "last": record["last"].get(sweep.metric),
        **({"schedule": record["schedule"]} if "schedule" in record else {}),
    }
