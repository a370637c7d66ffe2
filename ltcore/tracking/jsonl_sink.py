"""The record of a run: ``metrics.jsonl`` and ``tables/``, which resuming and reporting read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcore.errors import NumericError
from ltcore.storage import read_jsonl, write_bytes_atomic
from ltcore.tracking.base import Scalars, Tracker


class JsonlTracker(Tracker):
    """Writes ``metrics.jsonl``, one JSON object per ``log`` call, and one ``tables/<name>.json`` per table.

    A resumed run first drops rows logged after ``resume_step``, so that no epoch occurs twice; with 0 the file starts
    empty.
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        self.run_dir = run_dir
        path = run_dir / "metrics.jsonl"
        kept = [row for row in read_jsonl(path) if 0 < row["step"] <= resume_step]
        write_bytes_atomic(str(path), "".join(_line(row) for row in kept).encode())
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def log(self, metrics: Scalars, step: int) -> None:
        for key, value in metrics.items():
            if value is not None and not math.isfinite(value):
                raise NumericError(f"{key} is {value} at step {step}: only finite numbers are logged.")
        self._file.write(_line({**metrics, "step": step}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        path = self.run_dir / "tables" / f"{name.replace('/', '.')}.json"
        write_bytes_atomic(
            str(path), json.dumps({"columns": list(columns), "rows": [list(row) for row in rows]}).encode()
        )

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        del summary, status  # the training loop writes both to run.json
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
