"""How a finished run and a finished sweep are shown. Imports no torch: what is stored is shown at once."""

from __future__ import annotations

from typing import Any

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
    if record.reason:
        console.print(f"{record.reason[0].upper()}{record.reason[1:]}; {record.epochs_planned} epochs were planned.")
    console.print(f"Run directory: {run_uri}   ({duration(record.seconds)} of training, {record.precision})")


def show_result(sweep: SweepRecord, uri: str, *, age: bool) -> None:
    """Shows the ranked table, the verdict, and where everything is stored."""
    from ltcore.reporting.report import ranked_table, summary_lines

    console = Terminal()
    if age:
        from ltcore.training.stored import finished_ago

        console.print(
            f"Sweep {sweep.name} finished {finished_ago(sweep)}; this is its stored result (--fresh to repeat it)."
        )
    rows = ranked_table(sweep)
    if rows:
        table = Table(title="trials, ranked on validation")
        for column in rows[0]:
            table.add_column(str(column))
        for row in rows:
            table.add_row(*(_cell(value) for value in row.values()))
        console.print(table)
    for line in summary_lines(sweep):
        console.print(line)
    console.print(f"Report: {join(uri, 'report.html')}")


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
