"""``run.json``: what a run is, was asked to do, and came to. Rewritten whole and atomically."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltcore.storage import join, read_json, write_json


@dataclass(frozen=True)
class RunInfo:
    """Who asked for a run, and what for."""

    id: str
    """Stable across restarts; also the W&B id."""
    kind: str = "run"
    """'run', 'trial', 'baseline' or 'retrain'."""
    group: str = ""
    """Sweep the run belongs to, or ''."""
    test: bool = True
    """Evaluate the test splits once, at the end. Trials of a sweep never do."""
    mutable: tuple[str, ...] = ()
    """Dotted keys that may change from one start to the next (population-based training); their course is recorded."""
    until: int = 0
    """Epochs after which the run stops with a checkpoint, to be continued or not; 0: at its end."""


class RunRecord:
    """The content of ``run.json`` and the file itself. Only rank 0 has one with a path."""

    def __init__(self, path: Path | None, fields: dict[str, Any]) -> None:
        self._path = path
        self.fields: dict[str, Any] = {"schema": 1, "status": "running", "reason": "", **fields}

    def update(self, **fields: Any) -> None:
        """Sets fields and writes the file."""
        self.fields.update(fields)
        self.write()

    def write(self) -> None:
        """The whole file; nothing on a rank without one. DataError where the place cannot be written."""
        if self._path is not None:
            write_json(self._path, self.fields)


def now() -> str:
    """The time as it stands in records."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def has_failed(run_uri: str) -> bool:
    """Tells whether a run has written down that it failed, and why."""
    record = read_json(join(run_uri, "run.json"))
    return record is not None and record["status"] == "failed"
