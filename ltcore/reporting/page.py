"""Parts that the reports of sweeps and of plain runs share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting.figures import Curve
from ltcore.reporting.format import METRICS, metric_name, value_text
from ltcore.reporting.records import StoredRun


def stored_curves(runs: Iterable[tuple[str, str, StoredRun]], metric: str) -> list[Curve]:
    """Returns a curve for each (label, role, run) that has logged the metric."""
    found = ((label, role, *run.curve(metric)) for label, role, run in runs)
    return [Curve(label, role, epochs, values) for label, role, epochs, values in found if epochs]


def table_of_tests(runs: Mapping[str, StoredRun]) -> list[dict[str, Any]]:
    """Returns one table per test split and protocol: a row per run, a column per metric, exact values."""
    tests = {name: run.tests() for name, run in runs.items()}
    tables = []
    for split in ordered_splits({split for test in tests.values() for split in test}):
        found = dict.fromkeys(metric for test in tests.values() for metric in test.get(split, {}))
        metrics = sorted(found, key=lambda m: list(METRICS).index(m) if m in METRICS else len(METRICS))
        columns = [{"key": f"{split}/{m}", "name": metric_name(m)} for m in metrics]
        protocols: dict[
            str, list[dict[str, Any]]
        ] = {}  # the same images test GLT or ALT, depending on the training split
        for name, test in tests.items():
            if split in test:
                row = {"name": name, "run": runs[name], "values": [test[split].get(m) for m in metrics]}
                protocols.setdefault(protocol_of(split, runs[name].info)[0], []).append(row)
        tables += [{"split": split, "name": name, "columns": columns, "rows": rows} for name, rows in protocols.items()]
    return tables


def config_rows(run: StoredRun | None, other: StoredRun | None) -> list[dict[str, Any]]:
    """Returns the configuration of ``run``, key by key, beside that of ``other``.

    'off' stands for a whole section that is off in ``other``.
    """
    mine = (run.info.get("config") or {}) if run else {}
    theirs = (other.info.get("config") or {}) if other else mine
    rows = []
    for key in mine:
        ours, others = value_text(mine[key]), _text_in(theirs, key)
        rows.append({"key": key, "value": ours, "other": others, "differs": ours != others and key not in IDENTITY})
    return rows


def _text_in(config: Mapping[str, Any], key: str) -> str:
    """Returns the value of a key as text.

    A section that is off is one key without a value.
    """
    words = key.split(".")
    for take in range(len(words), 0, -1):
        if (prefix := ".".join(words[:take])) in config:
            return value_text(config[prefix])
    return "—"


IDENTITY = ("name", "seed")
"""Keys that differ between any two runs and do not describe the method."""


def machine(runs: Sequence[StoredRun], sweep: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (label, value) of hardware, precision, threads, engine and versions; values that differ are listed."""
    infos = [run.info for run in runs if run.info]
    hardware = [h for h in [sweep.get("hardware"), *(i.get("hardware") for i in infos)] if h]
    rows = [("machine", " / ".join(dict.fromkeys(map(_hardware_text, hardware))))]
    for label, key in (("precision", "precision"), ("threads", "threads"), ("workers", "world"), ("engine", "engine")):
        rows.append((label, " / ".join(dict.fromkeys(str(i[key]) for i in infos if i.get(key) is not None))))
    versions = dict.fromkeys(f"{name} {v}" for i in infos for name, v in (i.get("versions") or {}).items())
    rows.append(("versions", ", ".join(versions)))
    return [(label, value) for label, value in rows if value]


def _hardware_text(hardware: Mapping[str, Any]) -> str:
    gpus = hardware.get("gpus") or []
    parts = [f"{hardware.get('cpu', 'CPU')}, {hardware.get('cpus', '?')} cores"]
    if hardware.get("memory_bytes"):
        parts.append(f"{hardware['memory_bytes'] / 2**30:.0f} GiB")
    kinds = {gpu: gpus.count(gpu) for gpu in gpus}
    parts.append(" + ".join(f"{count} x {gpu}" for gpu, count in kinds.items()) or "no GPU")
    return ", ".join(parts)
