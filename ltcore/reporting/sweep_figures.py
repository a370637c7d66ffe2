"""Figures of a sweep's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ltcore.config.records import SweepRecord, TrialRecord
from ltcore.config.trained_with import TrainedData
from ltcore.evaluation.catalog import DETAILS, METRICS, minimized, title_of
from ltcore.evaluation.paired import PairedDifference
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting import figures
from ltcore.reporting.figures import Curve, Difference, Dot, Span
from ltcore.reporting.format import (
    listed_values,
    parse_range,
    range_text,
    short_names,
    value_text,
)
from ltcore.reporting.page import stored_curves
from ltcore.reporting.rank_table import is_rank_metric
from ltcore.reporting.records import StoredSweep
from ltcore.reporting.summary import searched


def sweep_figures(sweep: StoredSweep, data: TrainedData | None) -> dict[str, str]:
    record = sweep.record
    found: dict[str, str] = {}
    lines = _curves(sweep)
    if lines:
        found["curves"] = figures.curves(lines, title_of(record.metric), "curves")
    compared = record.comparison or {}
    comparison = {_title(split, record): compared[split] for split in ordered_splits(compared)}
    if comparison:
        found["bars"] = figures.group_bars({title: _bars(cells) for title, cells in comparison.items()}, "bars")
        found["differences"] = figures.differences(
            {title: _differences(cells) for title, cells in comparison.items()}, "differences"
        )
    means = class_means(sweep)
    if means and data is not None:
        found["per_class"] = figures.per_class(list(data.classes), list(data.shot_groups), means, "classes")
    return found


def _title(split: str, record: SweepRecord) -> str:
    name, _ = protocol_of(split, record.train_split)
    return split if split == name else f"{name} ({split})"


def _curves(sweep: StoredSweep) -> list[Curve]:
    runs = [(_role(sweep.record, t), sweep.trials[t.id]) for t in searched(sweep.record) if t.id in sweep.trials]
    if sweep.baseline is not None:
        runs.append(("baseline", sweep.baseline))
    return stored_curves([(role, role, run) for role, run in runs], sweep.record.metric)


def _role(sweep: SweepRecord, trial: TrialRecord) -> str:
    if trial.id == sweep.winner:
        return "winner"
    return "finished" if trial.status == "finished" else "stopped"


def _bars(cells: Mapping[str, PairedDifference]) -> dict[str, dict[str, Sequence[float]]]:
    groups = {"balanced_accuracy": "all", "many": "many", "medium": "medium", "few": "few"}
    return {
        label: {"winner": cells[metric].winner, "baseline": cells[metric].baseline}
        for metric, label in groups.items()
        if metric in cells
    }


def _differences(cells: Mapping[str, PairedDifference]) -> list[Difference]:
    order = [m for m in METRICS if m in cells]
    order += [m for m in cells if m not in METRICS]
    deltas = [(m, cells[m]) for m in order if not m.endswith(DETAILS) and not is_rank_metric(m)]
    return [Difference(title_of(m), d.difference, d.low, d.high, d.distinguishable, minimized(m)) for m, d in deltas]


def responses(sweep: StoredSweep) -> list[dict[str, str]]:
    """Draws one figure per swept key, on a common vertical axis."""
    record = sweep.record
    scored = [(trial, trial.last) for trial in searched(record) if trial.last is not None]
    baseline = sweep.baseline.last(record.metric) if sweep.baseline else None
    heights = [value for _, value in scored] + ([baseline] if baseline is not None else [])
    if not scored:
        return []
    pad = max(0.08 * (max(heights) - min(heights)), 0.01)
    limits = (min(heights) - pad, max(heights) + pad)
    names = short_names(record.space)
    result = []
    for at, (key, spec) in enumerate(record.space.items()):
        found = parse_range(spec)
        values = [(trial.params[key], value, _role(record, trial)) for trial, value in scored]
        dots = [Dot(x if found else value_text(x), value, role) for x, value, role in values]
        svg = figures.response(dots, baseline, Span(*found) if found else listed_values(spec), f"response{at}", limits)
        result.append({"key": key, "short": names[key], "range": range_text(spec), "svg": svg})
    return result


def class_means(sweep: StoredSweep) -> dict[str, list[float | None]]:
    """Returns the accuracy per class on the first test split, averaged over seeds, by role.

    {} unless both roles have it.
    """
    found: dict[str, list[float | None]] = {}
    for role in ("winner", "baseline"):
        records = [retrain.run.record for retrain in sweep.of_role(role)]
        tables = [record.per_class or {} for record in records if record is not None]
        splits = ordered_splits({split for table in tables for split in table})
        if not splits:
            return {}
        columns = zip(*(table[splits[0]] for table in tables if splits[0] in table), strict=True)
        found[role] = [None if None in column else fmean(column) for column in columns]
    return found
