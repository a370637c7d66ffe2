"""Content of the report of plain runs: one run, or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltcore.config.keys import effective
from ltcore.evaluation.catalog import headline, title_of
from ltcore.evaluation.protocols import protocol_of
from ltcore.reporting import figures
from ltcore.reporting.figures import Curve
from ltcore.reporting.format import percent, value_text
from ltcore.reporting.page import IDENTITY, config_rows, machine, stored_curves, table_of_tests
from ltcore.reporting.records import StoredRun
from ltcore.reporting.run_page import run_sections
from ltcore.reporting.svg import RUN_COLORS
from ltcore.text import counted, duration, printable


def runs_page(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """Returns the context of ``runs.html.j2``."""
    names = _names(runs)
    return {
        "title": names[0] if len(runs) == 1 else f"{len(runs)} runs",
        "headline": _headline(runs),
        "runs": [_row(name, run) for name, run in zip(names, runs, strict=True)],
        "differing": _differing([effective(run.record.config if run.record else {}) for run in runs]),
        "tests": table_of_tests(dict(zip(names, runs, strict=True))),
        "run": run_sections(runs[0]) if len(runs) == 1 else {},
        "figures": _curves(names, runs),
        "config": config_rows(runs[0], None),
        "machine": machine(runs, None),
    }


def _names(runs: Sequence[StoredRun]) -> list[str]:
    """Returns the directories' names, with as many parents as are needed to distinguish them."""
    for depth in range(1, max(len(run.path.parts) for run in runs) + 1):
        names = [printable("/".join(run.path.parts[-depth:])) for run in runs]
        if len(set(names)) == len(names):
            break
    return names


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the keys whose values differ between the runs."""
    rows = []
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [value_text(config.get(key)) for config in configs]
        if len(set(values)) > 1 and key not in IDENTITY:
            rows.append({"key": key, "texts": values})
    return rows


def _headline(runs: Sequence[StoredRun]) -> str:
    if len(runs) > 1:
        states = [run.record.status if run.record else "without run.json" for run in runs]
        return (
            f"{counted(len(runs), 'run')}: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) + "."
        )
    record = runs[0].record
    if record is None:
        return "Unknown after 0 of ? epochs."
    tests = [
        f"{protocol_of(split, record.train_split)[0]} {title_of(metric)} {percent(metrics.get(metric))}"
        for split, metrics in runs[0].tests().items()
        for metric in headline(metrics)
    ]
    return f"{record.status.capitalize()} after {record.epochs_done} of {counted(record.epochs_planned, 'epoch')}" + (
        f": {', '.join(tests)}." if tests else "."
    )


def _row(name: str, run: StoredRun) -> dict[str, Any]:
    record = run.record
    if record is None:
        fields = ("reason", "seed", "done", "planned", "last", "best")
        return {"name": name, "status": "unknown", **dict.fromkeys(fields), "time": "—", "data": "—"}
    return {
        "name": name,
        "status": record.status,
        "reason": record.reason,
        "seed": record.seed,
        "done": record.epochs_done,
        "planned": record.epochs_planned,
        "last": record.last.get("val/balanced_accuracy"),
        "best": record.best.get("val/balanced_accuracy"),
        "time": duration(record.seconds),
        "data": record.data.name,
    }


CURVES = ("val/balanced_accuracy", "val/top1", "val/macro_precision", "val/ece")
CURVE_WIDTH_PX = 440
"""Of one run: legible on a phone, and two beside each other elsewhere."""


def _curves(names: Sequence[str], runs: Sequence[StoredRun]) -> dict[str, str]:
    """Returns one figure per metric; a few runs are drawn in color, more of them without names.

    On a balanced validation split top-1 is the balanced accuracy, and is not drawn again.
    """
    few = len(runs) <= len(RUN_COLORS)
    roles = RUN_COLORS if few else ["finished"] * len(runs)
    labels, sizes = (names, {}) if len(runs) > 1 else ([""], {"width_px": CURVE_WIDTH_PX})
    found: dict[str, str] = {}
    drawn: list[list[Curve]] = []
    for metric in CURVES:
        lines = stored_curves([(n, role, run) for n, role, run in zip(labels, roles, runs, strict=False)], metric)
        if lines and lines not in drawn:
            drawn.append(lines)
            found[metric] = figures.curves(lines, title_of(metric), metric.replace("/", "-"), **sizes)
    return found
