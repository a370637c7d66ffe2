"""How a finished run and a finished sweep are shown. Imports no torch: what is stored is shown at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ltcore.config.records import RunRecord, SweepRecord
from ltcore.reporting.terminal import Terminal
from ltcore.storage import join
from ltcore.text import duration


def show_run(record: RunRecord, run_uri: str) -> None:
    """Shows the numbers of a finished run; the rest (per attribute, per class) is in ``run.json``."""
    console = Terminal()
    names = ("top1", "macro_precision", "many", "medium", "few")
    table = Table("weights", "split", *names, title=f"{record.name}: test, %")
    best = f"best on validation (epoch {record.best.get('epoch', '-')})"
    for weights, tests in (("last epoch", record.test), (best, record.test_best)):
        for split, metrics in (tests or {}).items():
            values = [metrics.get(name) for name in names]
            table.add_row(weights, split, *("-" if value is None else f"{100 * value:.2f}" for value in values))
    console.print(table)
    console.print(f"Run directory: {run_uri}   ({duration(record.seconds)} of training, {record.precision})")


def show_result(sweep: SweepRecord, uri: str, *, age: bool) -> None:
    """Shows the ranked trials or the compared variants, the verdict, and where everything is stored."""
    from ltcore.reporting.report import ranked_table, summary_lines, variants_lines, variants_table

    console = Terminal()
    if age:
        from ltcore.training.stored import finished_ago

        console.print(
            f"Sweep {sweep.name} finished {finished_ago(sweep)}; this is its stored result (--fresh to repeat it)."
        )
    compared = sweep.search == "variants"
    if rows := variants_table(sweep) if compared else ranked_table(sweep):
        console.print(_variants(rows) if compared else _trials(rows))
    for line in variants_lines(sweep) if compared else summary_lines(sweep):
        console.print(line)
    console.print(f"Report: {join(uri, 'report.html')}")


def _trials(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*map(str, rows[0]), title="trials, ranked on validation")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
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
