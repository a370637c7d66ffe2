"""TensorBoard event files through tensorboardX, which needs neither TensorFlow nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcore.text import markdown_cell, storable
from ltcore.tracking.base import Scalars, Tracker, scalars_of


class TensorBoardSink(Tracker):
    """Writes scalars as curves and tables as Markdown text. A resumed run hides values logged after ``resume_step``."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def log(self, metrics: Scalars, step: int) -> None:
        for key, value in scalars_of(metrics):
            self._writer.add_scalar(storable(key), value, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [[markdown_cell(str(cell)) for cell in line] for line in (columns, *rows)]
        lines.insert(1, ["---"] * len(columns))
        self._writer.add_text(storable(name), "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        del summary, status  # TensorBoard has no place for them
        self._writer.close()
