"""A comparison of variants in words and as one table, for the terminal; and as a page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from ltcore.config.records import SweepRecord, Values, VariantRecord
from ltcore.config.sweep import STAGE1
from ltcore.errors import ConfigError, nearest
from ltcore.evaluation.catalog import (
    DETAILS,
    METRICS,
    NCM_METRICS,
    VALIDATION,
    as_predicted,
    goodness,
    of_other_predictor,
    of_plugin,
    title_of,
)
from ltcore.evaluation.paired import PairedDifference, points
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting import figures
from ltcore.reporting.controls import pair_lines, pairs
from ltcore.reporting.figures import Curve
from ltcore.reporting.format import TRAINED, count_text, mean_sd, short_names, value_text
from ltcore.reporting.page import machine
from ltcore.reporting.records import StoredSweep, test_metric
from ltcore.reporting.svg import RUN_COLORS
from ltcore.shots import SHOT_GROUPS
from ltcore.text import duration, markdown_code

T = TypeVar("T")
PRECISION = "macro_precision"
SEEDS = 3
"""Fewer make intervals of little use."""


def variants_table(sweep: SweepRecord) -> list[dict[str, str]]:
    """Returns one row of text per variant, the best on validation first; [] before the choice."""
    split = _split(sweep)
    return [_row(variant, sweep, split) for variant in sweep.variants]


def variants_markdown(sweep: SweepRecord, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> str:
    """Returns the comparison as a Markdown table: accuracy and macro precision of every test, in percent.

    ``rows`` and ``columns`` choose variants, and titles beside their names, in this order; () is all. Raises ConfigError for one
    that there is not.

    Mean and, from two seeds on, standard deviation over seeds, at the end of training; the best on validation first.
    Where the nearest class mean was measured as well, it and the classifier stand side by side; precision is always the
    classifier's, and the shot groups are those of the predictor by which variants are compared. Where variants differ in what
    of the network they train, a column says how many parameters that is.
    """
    splits = _splits(sweep)
    titles = ["method", "seeds", title_of(sweep.metric)]
    for split in splits:
        titles += [f"{_name(split, sweep)} {title_of(name)}" for name in _table_metrics(sweep, split)]
    titles += [f"{_name(main, sweep)} {_groups_title(sweep, main)}" for main in splits[:1]]
    titles += [*([TRAINED] if _tunes(sweep) else []), "time each"]
    lines = [titles, ["---"] * len(titles)]
    variants = {variant.name: variant for variant in sweep.variants}
    for variant in _chosen("rows", rows, variants) if rows else sweep.variants:
        cells = [markdown_code(variant.name), f"{len(variant.trials)}", _mean_sd(variant.val, sweep.metric)]
        for split in splits:
            tests = (variant.test or {}).get(split, {})
            cells += [_mean_sd(tests, name) for name in _table_metrics(sweep, split)]
        cells += [_groups(variant, sweep, main).replace("/", " / ") for main in splits[:1]]
        cells += [count_text(variant.trained_parameters)] if _tunes(sweep) else []
        lines.append([*cells, _time(variant)])
    if columns:
        places = [0, *_chosen("columns", columns, {title: place for place, title in enumerate(titles) if place})]
        lines = [[line[place] for place in places] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _chosen(option: str, names: Sequence[str], known: Mapping[str, T]) -> list[T]:
    for name in names:
        if name not in known:
            raise ConfigError(f"--{option}: there is no {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    return [known[name] for name in names]


def _row(variant: VariantRecord, sweep: SweepRecord, split: str | None) -> dict[str, str]:
    metric = title_of(sweep.metric.removeprefix(VALIDATION))
    row = {
        "method": variant.name,
        f"val {metric}": _mean_sd(variant.val, sweep.metric),
        "val shots": _groups(variant, sweep, None),
    }
    splits = _splits(sweep)
    for test_split in splits:
        metric, name = _test_metric(sweep, test_split), _name(test_split, sweep)
        row[name if len(splits) > 1 else f"{name} {title_of(metric)}"] = _mean_sd(
            (variant.test or {}).get(test_split, {}), metric
        )
    if split is not None:
        row[f"{_name(split, sweep)} shots"] = _groups(variant, sweep, split)
    trained = {TRAINED: count_text(variant.trained_parameters)} if _tunes(sweep) else {}
    return row | trained | {"time": _time(variant), "verdict": _words(variant, sweep, split)}


def _tunes(sweep: SweepRecord) -> bool:
    """Tells whether variants differ in the network or in what of it is trained, not in some rows of a classifier alone."""
    return any(key in variant.changes for variant in sweep.variants for key in ("model.name", "model.tune"))


def _words(variant: VariantRecord, sweep: SweepRecord, split: str | None) -> str:
    """Says in a word or two how the variant stands to the chosen one in the test."""
    if variant.reason:
        return "not ranked"
    if variant.name == sweep.winner:
        return "chosen"
    cell = _cell(variant, sweep, split)
    if cell is None or split is None:
        return "—"
    if cell.low is None:
        return "one seed"
    kind = _kind(cell, _test_metric(sweep, split))
    return "not distinguishable" if kind == "same" else kind


def _split(sweep: SweepRecord) -> str | None:
    """Returns the test split by which variants are compared in the first place; None before they were tested."""
    return next(iter(_splits(sweep)), None)


def _splits(sweep: SweepRecord) -> list[str]:
    """Returns the tests, the one by which variants are compared first."""
    return ordered_splits({split for variant in sweep.variants for split in variant.test or ()})


def _test_metric(sweep: SweepRecord, split: str) -> str:
    """Returns the test metric by which variants are compared."""
    measured = {name for variant in sweep.variants for name in (variant.test or {}).get(split, {})}
    return test_metric(sweep, measured) or "top1"


def _name(split: str, sweep: SweepRecord) -> str:
    return protocol_of(split, sweep.train_split)[0]


def _numbers(values: Values, metric: str) -> list[float]:
    return [value for value in values.get(metric, ()) if value is not None]


def _mean_sd(values: Values, metric: str) -> str:
    return mean_sd(_numbers(values, metric)).removesuffix("%").replace(" ± ", "±")  # of a table that should stay narrow


def _table_metrics(sweep: SweepRecord, split: str) -> list[str]:
    """Returns the metrics of a test that the Markdown table shows."""
    metric = _test_metric(sweep, split)
    other = of_other_predictor(metric)
    measured = any(_numbers((variant.test or {}).get(split, {}), other) for variant in sweep.variants)
    return [metric, *([other] if measured else []), PRECISION]


def _groups_of(sweep: SweepRecord, split: str | None) -> list[str]:
    """Returns the metrics of the shot groups that belong to the metric of a test, or of validation."""
    metric = sweep.metric if split is None else _test_metric(sweep, split)
    return [as_predicted(group, metric) for group in SHOT_GROUPS]


def _groups_title(sweep: SweepRecord, split: str) -> str:
    names = " / ".join(SHOT_GROUPS)
    return names if _groups_of(sweep, split) == list(SHOT_GROUPS) else f"NCM {names}"


def _groups(variant: VariantRecord, sweep: SweepRecord, split: str | None) -> str:
    """Returns the means of the shot groups of a test, or of validation, in percent."""
    names = _groups_of(sweep, split)
    if split is None:
        means = [_numbers(variant.val, f"{VALIDATION}{name}") for name in names]
    else:
        means = [_numbers((variant.test or {}).get(split, {}), name) for name in names]
    return "/".join(f"{100 * fmean(numbers):.0f}" if numbers else "–" for numbers in means)


def _time(variant: VariantRecord) -> str:
    return duration(fmean(variant.seconds)) if variant.seconds else "—"


def _standing(variant: VariantRecord, sweep: SweepRecord, split: str | None) -> str:
    """Says how the variant stands to the chosen one in the test."""
    if variant.reason:
        return f"not ranked: {variant.reason}"
    if variant.name == sweep.winner:
        return "chosen on validation"
    cell = _cell(variant, sweep, split)
    return "—" if cell is None or split is None else _beside(cell, _test_metric(sweep, split))


def _cell(variant: VariantRecord, sweep: SweepRecord, split: str | None) -> PairedDifference | None:
    return None if split is None else (variant.difference or {}).get(split, {}).get(_test_metric(sweep, split))


def _beside(cell: PairedDifference, metric: str) -> str:
    """Says how a variant stands to the chosen one, of which ``cell`` is the difference to it."""
    if cell.low is None or cell.high is None:
        return f"{points(-cell.difference)}, one seed"
    interval = f"{points(-cell.high)}..{points(-cell.low)}"
    if not cell.distinguishable:
        return f"not distinguishable ({interval})"
    return f"{_kind(cell, metric)} by {100 * abs(cell.difference):.1f} ({interval})"


def _kind(cell: PairedDifference, metric: str) -> str:
    """Returns 'better' or 'worse' of the variant that is compared with the chosen one; 'same' if they cannot be told apart."""
    return "same" if not cell.distinguishable else "worse" if goodness(metric, cell.difference) > 0 else "better"


def variants_lines(sweep: SweepRecord) -> list[str]:
    """Returns what the table says, and what it cannot say, one plain sentence per line."""
    chosen = next((variant for variant in sweep.variants if variant.name == sweep.winner), None)
    if chosen is None:
        return ["Nothing is chosen yet: not every variant has been trained."]
    lines = [
        f"Chosen on validation: {chosen.name} ({title_of(sweep.metric)} {mean_sd(_numbers(chosen.val, sweep.metric))})."
    ]
    lines += [f"{v.name} is not ranked: {v.reason.strip().rpartition(chr(10))[2]}" for v in sweep.variants if v.reason]
    split, num_seeds = _split(sweep), len(chosen.trials)
    if split is None:
        return [*lines, "It was not tested: the data have no test split, or the sweep ended before."]
    what = f"{_name(split, sweep)} {title_of(_test_metric(sweep, split))}"
    kinds: dict[str, list[str]] = {}
    for variant in sweep.variants:
        if (cell := _cell(variant, sweep, split)) is not None:
            kind = _kind(cell, _test_metric(sweep, split)) if cell.low is not None else "one seed"
            kinds.setdefault(kind, []).append(variant.name)
    told = {"same": "not distinguishable from it", "worse": "worse", "better": "better"}
    found = [f"{words}: {', '.join(kinds[kind])}" for kind, words in told.items() if kind in kinds]
    if found:
        lines.append(
            f"In {what}, {'; '.join(found)} (95% intervals over {num_seeds} paired seeds, not corrected for their number)."
        )
    lines += pair_lines(pairs(sweep, split, _test_metric(sweep, split)), what)
    if num_seeds < SEEDS:
        lines.append(
            f"{num_seeds} seed{'s' * (num_seeds > 1)} cannot tell methods apart: sweep.seeds={SEEDS} with the same command adds "
            f"the other{'s' * (SEEDS - num_seeds > 1)}."
        )
    if "same" in kinds:
        alike = [v for v in sweep.variants if v.name in (chosen.name, *kinds["same"]) and v.seconds]
        quickest = min(alike, key=lambda v: fmean(v.seconds))
        lines.append(f"Of those that cannot be told apart, {quickest.name} trains the fastest ({_time(quickest)}).")
    return lines


def variants_page(sweep: StoredSweep) -> dict[str, Any]:
    """Returns the context of ``variants.html.j2``."""
    record, runs = sweep.record, sweep.runs()
    data = next((run.record.data for run in runs if run.record is not None), None)
    headline, *details = variants_lines(record)
    curves, columns = _curves(sweep), _columns(record)
    return {
        "title": record.name,
        "sweep": record,
        "data": data,
        "headline": headline,
        "details": details,
        "columns": columns,
        "tunes": _tunes(record),
        "rows": [_page_row(variant, record, columns) for variant in record.variants],
        "curves_of": _curves_of(record),
        "curves": figures.curves(curves, title_of(record.metric), "curves") if curves else "",
        "changes": [(variant.name, _changes(variant.changes)) for variant in record.variants],
        "stages": [(name, duration(seconds)) for name, seconds in record.stages.items()],
        "machine": machine(runs, record),
        "commands": _commands(sweep),
    }


def _columns(sweep: SweepRecord) -> list[dict[str, str]]:
    """Returns the columns of numbers: validation, then every test split, each with the metrics that have values."""
    sections = {"val": [variant.val for variant in sweep.variants]}
    for split in _splits(sweep):
        sections[split] = [variant.test[split] for variant in sweep.variants if variant.test]
    order = [name for name in (*METRICS, *NCM_METRICS) if not name.endswith(DETAILS)]
    columns = []
    for section, values in sections.items():
        prefix = VALIDATION if section == "val" else ""
        own = {name.removeprefix(prefix) for value in values for name in value if of_plugin(name)}
        names = [name for name in (*order, *sorted(own)) if any(_numbers(value, prefix + name) for value in values)]
        title = "validation" if section == "val" else _name(section, sweep)
        columns += [{"section": section, "metric": prefix + n, "name": f"{title} {title_of(n)}"} for n in names]
    return columns


def _page_row(variant: VariantRecord, sweep: SweepRecord, columns: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    split = _split(sweep)
    cell, cells = _cell(variant, sweep, split), []
    for column in columns:
        values = variant.val if column["section"] == "val" else (variant.test or {}).get(column["section"], {})
        numbers = _numbers(values, column["metric"])
        cells.append({**column, "text": mean_sd(numbers), "value": fmean(numbers) if numbers else None})
    return {
        "name": variant.name,
        "role": "winner" if variant.name == sweep.winner else "dim" if variant.reason else "",
        "cells": cells,
        "trained": count_text(variant.trained_parameters),
        "time": _time(variant),
        "standing": _standing(variant, sweep, split),
        "kind": "" if cell is None or split is None else _kind(cell, _test_metric(sweep, split)),
    }


def _curves(sweep: StoredSweep) -> list[Curve]:
    """Returns the validation curve of each variant's first seed, without stage 2, whose epochs are others."""
    found = []
    shown = [variant for variant in sweep.record.variants if STAGE1 not in variant.changes]
    for variant, color in zip(shown, RUN_COLORS, strict=False):
        epochs, values = sweep.trials[variant.trials[0]].curve(sweep.record.metric)
        if epochs:
            found.append(Curve(variant.name, color, epochs, values))
    return found


def _curves_of(record: SweepRecord) -> str:
    """Says of which methods there are curves."""
    many = sum(STAGE1 not in variant.changes for variant in record.variants) > len(RUN_COLORS)
    stage = " of stage 1" if any(STAGE1 in variant.changes for variant in record.variants) else ""
    return f"the first {len(RUN_COLORS)} methods{stage} of the table" if many else f"each method{stage}"


def _changes(changes: Mapping[str, Any]) -> str:
    names = short_names(changes)
    return ", ".join(f"{names[key]}={value_text(value)}" for key, value in changes.items())


def _commands(sweep: StoredSweep) -> list[tuple[str, str]]:
    """Returns (purpose, command) of sensible next commands."""
    commands = [("render this page again", f"python pipelines/report.py {shlex.quote(str(sweep.path))}")]
    chosen = next((variant for variant in sweep.record.variants if variant.name == sweep.record.winner), None)
    if chosen is None:
        return commands
    run = shlex.quote(str(sweep.trials[chosen.trials[0]].path))
    return [("classify images with the chosen method", f"python pipelines/evaluate.py {run} IMAGE ..."), *commands]
