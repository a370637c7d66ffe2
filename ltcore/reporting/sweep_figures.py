"""Figures of a sweep's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting import figures
from ltcore.reporting.figures import Curve, Difference, Dot, Span
from ltcore.reporting.format import (
    METRICS,
    listed_values,
    metric_name,
    parse_range,
    range_text,
    short_names,
    value_text,
)
from ltcore.reporting.page import stored_curves
from ltcore.reporting.records import StoredRun, StoredSweep, difference_of
from ltcore.reporting.summary import score, searched


def sweep_figures(sweep: StoredSweep, data: Mapping[str, Any]) -> dict[str, str]:
    """Returns the figures that the sweep's files allow, by name."""
    info = sweep.info
    found: dict[str, str] = {}
    lines = _curves(sweep)
    if lines:
        found["curves"] = figures.curves(lines, metric_name(info["metric"]), "curves")
    comparison = {s: info["comparison"][s] for s in ordered_splits(info.get("comparison") or {})}
    if comparison:
        found["bars"] = figures.group_bars({_title(s, info): _bars(cells) for s, cells in comparison.items()}, "bars")
        found["differences"] = figures.differences(
            {_title(s, info): _differences(cells) for s, cells in comparison.items()}, "differences"
        )
    means = class_means(sweep)
    if means:
        names = [str(c) for c in data.get("classes") or range(len(means["winner"]))]
        found["per_class"] = figures.per_class(names, data.get("shot_groups") or [""] * len(names), means, "classes")
    return found


def _title(split: str, info: Mapping[str, Any]) -> str:
    name, _ = protocol_of(split, info)
    return split if split == name else f"{name} ({split})"


def _curves(sweep: StoredSweep) -> list[Curve]:
    info = sweep.info
    runs = [(_role(info, t), sweep.trials[t["id"]]) for t in searched(info) if t["id"] in sweep.trials]
    if sweep.baseline is not None:
        runs.append(("baseline", sweep.baseline))
    return stored_curves([(role, role, run) for role, run in runs], str(info.get("metric")))


def _role(info: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    if trial["id"] == info.get("winner"):
        return "winner"
    return "finished" if trial["status"] == "finished" else "stopped"


def _bars(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Sequence[float]]]:
    groups = {"top1": "all", "many": "many", "medium": "medium", "few": "few"}
    return {
        label: {role: cells[metric][role] for role in ("winner", "baseline")}
        for metric, label in groups.items()
        if metric in cells
    }


def _differences(cells: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    order = [m for m in METRICS if m in cells]
    order += [m for m in cells if m not in METRICS and not m.endswith("/macro_precision")]
    deltas = [(metric_name(m), difference_of(cells[m])) for m in order]
    return [Difference(name, d.difference, d.low, d.high, d.distinguishable) for name, d in deltas]


def responses(sweep: StoredSweep) -> list[dict[str, str]]:
    """Returns one figure per swept key, on a common vertical axis."""
    info = sweep.info
    scored = [(t, value) for t in searched(info) if (value := score(t)) is not None]
    baseline = validation(sweep.baseline, str(info.get("metric")))
    heights = [value for _, value in scored] + ([baseline] if baseline is not None else [])
    if not scored:
        return []
    pad = max(0.08 * (max(heights) - min(heights)), 0.01)
    limits = (min(heights) - pad, max(heights) + pad)
    names = short_names(info.get("space") or {})
    result = []
    for at, (key, spec) in enumerate((info.get("space") or {}).items()):
        found = parse_range(str(spec))
        values = [(t["params"].get(key), value, _role(info, t)) for t, value in scored]
        dots = [Dot(x if found else value_text(x), value, role) for x, value, role in values]
        svg = figures.response(
            dots, baseline, Span(*found) if found else listed_values(str(spec)), f"response{at}", limits
        )
        result.append({"key": key, "short": names[key], "range": range_text(str(spec)), "svg": svg})
    return result


def validation(run: StoredRun | None, metric: str) -> float | None:
    """Returns the metric at the end of a run, by which the search scores its trials."""
    return None if run is None else (run.info.get("last") or {}).get(metric)


def class_means(sweep: StoredSweep) -> dict[str, list[float | None]]:
    """Returns the accuracy per class on the first test split, averaged over seeds, by role.

    {} unless both roles have it.
    """
    found: dict[str, list[float | None]] = {}
    for role in ("winner", "baseline"):
        tables = [run.info.get("per_class") or {} for run in (r.run for r in sweep.of_role(role))]
        splits = ordered_splits({split for table in tables for split in table})
        if not splits:
            return {}
        columns = zip(*(table[splits[0]] for table in tables if splits[0] in table), strict=True)
        found[role] = [None if None in column else fmean(column) for column in columns]
    return found
