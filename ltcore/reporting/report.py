"""Self-contained HTML reports of sweeps and runs, and summaries for the terminal.

Every number in a page is in an element with ``data-run``, ``data-metric`` and ``data-value`` (exact), so a page can be
checked against the run files. A page needs no network, no script and no other file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.config.records import SweepRecord
from ltcore.errors import ConfigError, DataError
from ltcore.reporting.ablation import ablation_table
from ltcore.reporting.format import moment, percent, value_text
from ltcore.reporting.records import read_run, read_sweep
from ltcore.reporting.runs_page import runs_page
from ltcore.reporting.summary import ranked_table, summary_lines
from ltcore.reporting.sweep_page import sweep_page
from ltcore.reporting.variants import variants_lines, variants_markdown, variants_page, variants_table
from ltcore.storage import write_bytes_atomic
from ltcore.text import duration, storable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "ablation_table",
    "make_report",
    "make_table",
    "ranked_table",
    "summary_lines",
    "variants_lines",
    "variants_table",
    "write_report",
    "write_runs_report",
]


def write_report(sweep_dir: Path | str, out: Path | str | None = None, record: SweepRecord | None = None) -> Path:
    """Writes the report of a local sweep directory, finished or not, and returns its path.

    It goes to ``out``, by default ``report.html`` in the directory. ``record`` takes the place of ``sweep.json``, for a
    sweep that is not called finished before its report is there.
    """
    folder = Path(sweep_dir)
    sweep, path = read_sweep(folder, record), Path(out) if out else folder / "report.html"
    if sweep.record.search == "variants":
        return write_page("variants.html.j2", variants_page(sweep), path)
    return write_page("sweep.html.j2", sweep_page(sweep), path)


def write_runs_report(run_dirs: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Writes the report of one or more local run directories and returns its path.

    It goes to ``out``; by default into the run directory, or, for several, into their deepest common directory.
    """
    folders = [Path(folder).absolute() for folder in run_dirs]
    for folder in folders:
        if not (folder / "run.json").exists() and not (folder / "metrics.jsonl").exists():
            raise DataError(f"{folder} is not a run directory: it has neither run.json nor metrics.jsonl.")
    path = Path(out) if out else Path(os.path.commonpath(folders)) / "report.html"
    return write_page("runs.html.j2", runs_page([read_run(folder) for folder in folders]), path)


def make_report(folders: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Writes the report of one sweep directory, or of run directories."""
    if len(folders) == 1 and (Path(folders[0]) / "sweep.json").exists():
        return write_report(folders[0], out)
    return write_runs_report(folders, out)


def make_table(
    folders: Sequence[Path | str], rows: Sequence[str] = (), columns: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """Returns finished runs, or one comparison of variants, as a Markdown table; and the folders left out with the reason.

    The table is that of ``ltcore.reporting.results_table``, or ``variants_markdown``, of which ``rows`` and ``columns`` choose
    some. Raises DataError where no run is finished, and ConfigError where a choice names nothing.
    """
    if len(folders) == 1 and (Path(folders[0]) / "sweep.json").exists():
        record = read_sweep(Path(folders[0])).record
        if record.search == "variants":
            return variants_markdown(record, rows, columns), []
    if rows or columns:
        raise ConfigError(
            f"--rows and --columns choose from a comparison of variants (ltcore tune --sweep), which {folders[0]} is not."
        )
    from ltcore.reporting.results_table import missing, results_table  # imported late, because it reads every recipe

    runs = [read_run(Path(folder)) for folder in folders]
    left_out = [f"{run.path}: {missing(run)}" for run in runs if missing(run)]
    if len(left_out) == len(runs):
        raise DataError(f"No finished run among these: {'; '.join(left_out[:5])}. Give directories of finished runs.")
    return results_table([run for run in runs if not missing(run)]), left_out


def write_page(template: str, context: Mapping[str, Any], path: Path) -> Path:
    """Renders a template of this package into a file and returns its path."""
    write_bytes_atomic(str(path), storable(_environment().get_template(template).render(context)).encode())
    return path


@functools.cache
def _environment() -> Environment:
    """Returns what renders templates; it keeps those that it has compiled."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "value_text": value_text, "duration": duration, "moment": moment}
    return environment
