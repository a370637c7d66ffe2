"""Who asked for a run, and what its record says while it goes on."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.config.json_record import RecordFile
from ltcore.config.records import RunRecord

RunLog = RecordFile[RunRecord]
"""The record of a run that goes on. Rank 0 alone has one with a file."""


@dataclass(frozen=True)
class RunInfo:
    """Who asked for a run, and what for."""

    id: str
    """Stable across restarts; also the W&B id."""
    kind: str = "run"
    """'run', 'trial', 'baseline', 'retrain' or 'shared_start'."""
    group: str = ""
    """Sweep the run belongs to, or ''."""
    test: bool = True
    """Evaluate the test splits once, at the end. Trials of a sweep do not, unless all of them are compared after it."""
    mutable: tuple[str, ...] = ()
    """Dotted keys that may change from one start to the next (population-based training); their course is recorded."""
    until: int = 0
    """Epochs after which the run stops with a checkpoint, to be continued or not; 0: at its end."""


def failed_start(run_uri: str) -> tuple[str, int] | None:
    """Returns time and process of the start of a run that wrote down that it failed, and why; None where its last has not."""
    record = RunRecord.read(run_uri)
    return (str(record.started_at), record.pid) if record is not None and record.status == "failed" else None
