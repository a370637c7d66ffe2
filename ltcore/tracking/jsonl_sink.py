"""The record of a run: ``metrics.jsonl`` and ``tables/``, which resuming and reporting read."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcore.errors import DamagedFileError, NumericError, RemovedError
from ltcore.storage import DAMAGED, read_jsonl, write_bytes_atomic
from ltcore.text import glimpse
from ltcore.tracking.appended_file import AppendedFile
from ltcore.tracking.base import Scalars, Tracker

_LOG = logging.getLogger(__name__)
MAX_COUNT = 2**53
"""Of steps and epochs; more than that JSON does not hold exactly."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of ``metrics.jsonl``; [] where there is none. A last line cut off by a kill is left out.

    Raises DamagedFileError with the first row that no run has logged.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        for key in {"step", *({"epoch"} & row.keys())}:
            count = row.get(key)
            if type(count) is not int or not 0 <= count <= MAX_COUNT:
                raise DamagedFileError(
                    f"{path}, row {number}: {key} is {glimpse(count)}, expected a whole number. {DAMAGED}"
                )
        for key, value in row.items():
            if value is not None and not _is_finite(value):
                raise DamagedFileError(f"{path}, row {number}: {key} is {glimpse(value)}, expected a number. {DAMAGED}")
    return rows


def write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the whole of ``metrics.jsonl``, or nothing."""
    write_bytes_atomic(str(path), "".join(_line(row) for row in rows).encode())


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # as NaN is not


class JsonlTracker(Tracker):
    """Writes ``metrics.jsonl``, one JSON object per ``log`` call, and one ``tables/<name>.json`` per table.

    A row is on the disk when ``log`` returns, since the checkpoint that is written next counts on it. A resumed run first
    drops rows logged after ``resume_step``, so that no epoch occurs twice, and says where the last ones before it are missing;
    with 0 the file starts empty.
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        self.run_dir = run_dir
        path = run_dir / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if 0 < row["step"] <= resume_step]
        if (last := kept[-1]["step"] if kept else 0) < resume_step:
            _LOG.warning(
                "%s has no row of steps %d to %d, which the checkpoint contains. The run goes on without them.",
                path,
                last + 1,
                resume_step,
            )
        write_metrics(path, kept)
        self._file = AppendedFile(path)

    def log(self, metrics: Scalars, step: int) -> None:
        for key, value in metrics.items():
            if value is not None and not math.isfinite(value):
                raise NumericError(f"{key} is {value} at step {step}: only finite numbers are logged.")
        self._refuse_removed()
        self._file.append(_line({**metrics, "step": step}).encode())
        self._file.sync()

    def _refuse_removed(self) -> None:
        """Raises RemovedError where what is written next would be lost, or all that there is of the run."""
        if not self._file.is_there():
            raise RemovedError(
                f"{self.run_dir / 'metrics.jsonl'} was removed or replaced while the run trained: its rows until now are lost. "
                "The run ends and writes nothing anew; the same command goes on from the last checkpoint, or else begins anew."
            )

    def take_over(self, metrics: Scalars, step: int) -> None:
        """Does nothing: the file has the row."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._refuse_removed()
        path = self.run_dir / "tables" / f"{name.replace('/', '.')}.json"
        write_bytes_atomic(
            str(path), json.dumps({"columns": list(columns), "rows": [list(row) for row in rows]}).encode()
        )

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        del summary, status  # the training loop writes both to run.json
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
