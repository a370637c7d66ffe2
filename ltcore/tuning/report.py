"""The end of a sweep: ``report.html`` beside ``sweep.json``, and the sweep's own W&B run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ltcore.config.records import SweepRecord
from ltcore.evaluation.catalog import goodness
from ltcore.hashing import hash64
from ltcore.lease import check_held
from ltcore.reporting.compared import compared_tests
from ltcore.reporting.report import ablation_table, variants_table, write_report
from ltcore.runtime.progress import ProgressDisplay
from ltcore.storage import is_local, join, write_bytes_atomic
from ltcore.tracking.tracker import open_tracker
from ltcore.training.fetch import fetched
from ltcore.training.sync import RunSync
from ltcore.tuning.runs import SweepSetup

REPORT_FILES = ("sweep.json", "run.json", "metrics.jsonl", "config.yaml")


def of_report(names: Sequence[str]) -> list[str]:
    """Returns those files of a sweep that its report reads."""
    return [name for name in names if name.rpartition("/")[2] in REPORT_FILES]


def report(setup: SweepSetup, record: SweepRecord, display: ProgressDisplay, id_prefix: str) -> None:
    """Writes report.html beside sweep.json, and the sweep's own W&B run, with ``record`` as what is known of the sweep."""
    with display.stage("report"), fetched(setup.uri, of_report) as folder:
        check_held(setup.uri)
        path = write_report(folder, record=record)
        if not is_local(setup.uri):
            write_bytes_atomic(join(setup.uri, "report.html"), path.read_bytes(), partial(check_held, setup.uri))
        _log_sweep(setup, record, id_prefix, folder, path)
        RunSync(join(setup.uri, "sweep"), folder / "sweep").close()


def _log_sweep(setup: SweepSetup, record: SweepRecord, id_prefix: str, folder: Path, report: Path) -> None:
    cfg = setup.base
    tracker = open_tracker(
        run_dir=folder / "sweep",
        run_id=f"{id_prefix}-sweep-{hash64(setup.uri, str(record.created_at)) % 16**6:06x}",  # no other sweep's of its name
        group=setup.sweep.name,
        name=f"{setup.sweep.name}-sweep",
        config_flat=dict(record.identity),
        options=replace(cfg.tracking, tensorboard=False),
        job_type="sweep",
    )
    keys = list(setup.sweep.space)
    ranked = sorted(record.trials or (), key=lambda t: -goodness(record.metric, t.last))
    rows = [[t.id, t.status, *(t.params[k] for k in keys), t.last, t.best, t.epochs_done] for t in ranked]
    tracker.table("trials", ["trial", "status", *keys, "last", "best", "epochs"], rows)
    if compared := variants_table(record):
        tracker.table("variants", list(compared[0]), [list(row.values()) for row in compared])
    if ablated := ablation_table(record):
        tracker.table("ablation", list(ablated[0]), [list(row.values()) for row in ablated])
    tracker.html("report", report)
    flat_summary = {
        f"{test.metric_key}/{metric}/{field}": getattr(difference, field)
        for test in compared_tests(record)
        for metric, difference in test.cells.items()
        for field in ("difference", "low", "high")
    }
    tracker.finish({"winner": record.winner or "", **flat_summary}, record.status)
