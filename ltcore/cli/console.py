"""What a single run prints, and how a finished sweep is shown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ltcore.reporting.terminal import Terminal
from ltcore.storage import join
from ltcore.text import duration

if TYPE_CHECKING:
    from ltcore.training.context import RunContext


class EpochLines:
    """A context that prints one line per epoch, at most every two seconds, and passes everything on."""

    def __init__(self, ctx: RunContext, epochs: int) -> None:
        self._ctx, self._epochs = ctx, epochs
        self.engine, self.rank, self.world, self.device = ctx.engine, ctx.rank, ctx.world, ctx.device
        self.checkpoint_every_epoch = ctx.checkpoint_every_epoch
        self._began: tuple[float, int] | None = None
        self._printed = 0.0

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        now = time.monotonic()
        epoch = int(metrics["epoch"])
        if self._began is None:
            self._began = (now, epoch)
        if now - self._printed > 2 or epoch == self._epochs:
            self._printed = now
            done = epoch - self._began[1]
            left = f", about {duration((now - self._began[0]) / done * (self._epochs - epoch))} left" if done else ""
            value = metrics.get("val/top1")
            shown = "" if value is None else f"  val top-1 {100 * value:5.2f}%"
            print(
                f"epoch {epoch:4d}/{self._epochs}  loss {metrics['train/loss']:.4f}{shown}  lr {metrics['lr']:.4g}  "
                f"{metrics['images_per_s']:,.0f} images/s, data wait {100 * metrics['data_wait_fraction']:.0f}%{left}",
                flush=True,
            )
        self._ctx.report(metrics, checkpoint)

    def saved(self) -> None:
        self._ctx.saved()

    def stop_requested(self) -> bool:
        return self._ctx.stop_requested()

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        self._ctx.beat(epoch, images_seen, total_images)


def show_run(record: dict[str, Any], run_uri: str) -> None:
    """The numbers of a finished run; the rest (per attribute, per class) is in ``run.json``."""
    console = Terminal()
    names = ("top1", "macro_precision", "many", "medium", "few")
    table = Table("weights", "split", *names, title=f"{record['name']}: test, %")
    best = f"best on validation (epoch {record['best'].get('epoch', '-')})"
    for weights, section in (("last epoch", "test"), (best, "test_best")):
        for split, values in record.get(section, {}).items():
            cells = ["-" if values[n] is None else f"{100 * values[n]:.2f}" for n in names]
            table.add_row(weights, split, *cells)
    console.print(table)
    console.print(f"Run directory: {run_uri}   ({duration(record['seconds'])} of training, {record['precision']})")


def show_result(sweep: dict[str, Any], uri: str, *, age: bool) -> None:
    """Ranked table, verdict, and where everything lies."""
    from ltcore.reporting.report import ranked_table, summary_lines

    console = Terminal()
    if age:
        from ltcore.training.stored import finished_ago

        console.print(
            f"Sweep {sweep['name']} finished {finished_ago(sweep)}; this is its stored result (--fresh to repeat it)."
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
