"""How a finished run and a finished sweep are shown. Imports no torch: what is stored is shown at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ltcore.config.records import Metrics, RunRecord, SweepRecord
from ltcore.evaluation.balance import remarks
from ltcore.evaluation.catalog import DETAILS, METRICS, NCM, NCM_METRICS, headline, of_plugin, title_of
from ltcore.evaluation.protocols import ordered_splits, protocol_of
from ltcore.reporting.rank_table import RANKS, RankGroup, compared_methods, is_rank_metric, rank_groups
from ltcore.reporting.terminal import Terminal
from ltcore.storage import join
from ltcore.text import duration


def show_run(record: RunRecord, run_uri: str) -> None:
    """Shows the numbers of a finished run; the rest (per attribute, per class) is in ``run.json``."""
    console = Terminal()
    columns = _test_columns(record)
    table = Table("metric, %", title=f"{record.name}: test")
    for header in columns:
        table.add_column(header, justify="right")
    for name in shown_metrics(columns.values()):
        table.add_row(title_of(name), *(percent_cell(values.get(name)) for values in columns.values()))
    console.print(table)
    if split := next(iter(ordered_splits(record.test or {})), None):
        values = {metric: (value,) for metric, value in (record.test or {})[split].items()}
        if groups := rank_groups({"": values}):
            console.print(_ranks(f"{split}, last epoch", groups))
    for split, support in (record.support or {}).items():
        for remark in remarks(split, support):
            console.print(remark)
    if record.reason:
        console.print(f"{record.reason[0].upper()}{record.reason[1:]}; {record.epochs_planned} epochs were planned.")
    console.print(f"Run directory: {run_uri}   ({duration(record.seconds)} of training, {record.precision})")


def _test_columns(record: RunRecord) -> dict[str, Metrics]:
    """Returns the metrics of each test by the header of its column: split and weights."""
    last, best, epoch = record.test or {}, record.test_best or {}, record.best.get("epoch", "-")
    if last == best:
        return {f"{split}, last epoch (also best on validation)": values for split, values in last.items()}
    return {
        **{f"{split}, last epoch": values for split, values in last.items()},
        **{f"{split}, best on validation (epoch {epoch})": values for split, values in best.items()},
    }


def shown_metrics(tests: Iterable[Metrics]) -> list[str]:
    """Returns the metrics of all classes and of each group that have a value.

    The balanced accuracy is among them, and comes first, where it is not top-1.
    """
    found = list(tests)
    first = {name for values in found for name in headline(values)}
    defined = {name for values in found for name, value in values.items() if value is not None}
    others = {"balanced_accuracy", "top1"} - first
    ncm = (name for name in NCM_METRICS if name.removeprefix(NCM) not in others)
    names = (*METRICS, *ncm, *sorted(filter(of_plugin, defined)))
    shown = (name for name in names if name in defined and name not in others)
    return [name for name in shown if not name.endswith(DETAILS) and not is_rank_metric(name)]


def percent_cell(value: float | None, digits: int = 2) -> str:
    """Returns a fraction in percent for a table; a dash where it is not defined."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def show_result(sweep: SweepRecord, uri: str, *, age: bool) -> None:
    """Shows the ranked trials or the compared variants, the verdict, and where everything is stored."""
    from ltcore.reporting.report import (
        ablation_table,
        ranked_table,
        summary_lines,
        variants_lines,
        variants_table,
    )

    console = Terminal()
    if age:
        from ltcore.training.stored import finished_ago

        console.print(
            f"Sweep {sweep.name} finished {finished_ago(sweep)}; this is its stored result (--fresh to repeat it)."
        )
    compared = sweep.search == "variants"
    if rows := variants_table(sweep) if compared else ranked_table(sweep):
        console.print(_variants(rows) if compared else _trials(rows))
    if parts := ablation_table(sweep):
        console.print(_narrow(parts, "each term alone, and its controls; in percent"))
    for line in variants_lines(sweep) if compared else summary_lines(sweep):
        console.print(line)
    compared_splits = sweep.comparison or {}
    if split := next(iter(ordered_splits(compared_splits)), None):
        cells = compared_splits[split]
        if groups := rank_groups(compared_methods(cells), cells):
            console.print(_ranks(protocol_of(split, sweep.train_split)[0], groups))
    console.print(f"Report: {join(uri, 'report.html')}")


def _ranks(test: str, groups: Sequence[RankGroup]) -> Table:
    """Returns a table of accuracies by attribute rank; of several methods, each shot group has a row for each."""
    table = Table(title=f"{test}: by attribute rank in the class, %")
    table.add_column("classes")
    several = len(groups[0].rows) > 1
    if several:
        table.add_column("")
    for rank in RANKS:
        table.add_column(rank, justify="right")
    for group in groups:
        for at, row in enumerate(group.rows):
            name = group.title if at == 0 else ""
            cells = (cell.text for cell in row.cells)
            table.add_row(
                name, *([row.label] if several else []), *cells, end_section=several and row is group.rows[-1]
            )
    return table


def _trials(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*map(str, rows[0]), title="trials, ranked on validation")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _narrow(rows: Sequence[Mapping[str, str]], title: str) -> Table:
    """Returns a table of text whose cells do not wrap."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for column in rows[-1]:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def _variants(rows: Sequence[Mapping[str, str]]) -> Table:
    """Returns a table that fits into 80 columns: numbers and names do not wrap."""
    title = "methods, ranked on validation; in percent, shots are many/medium/few"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    *columns, last = rows[0]
    for column in columns:
        table.add_column(column.replace(" ", "\n"), no_wrap=True)
    table.add_column(last, min_width=len("distinguishable"))
    for row in rows:
        table.add_row(*row.values())
    return table


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
