"""The interface of every sink of a run's numbers, and the two trackers that hold none or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Scalars = Mapping[str, float | int | None]


class Tracker:
    """A sink that keeps nothing: every rank but 0 has one, and sinks override what they keep."""

    def log(self, metrics: Scalars, step: int) -> None:
        """Logs the scalars of one moment; ``step`` counts optimizer steps and never goes back. None means 'not defined'."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a small table (per-class accuracy, a ranking); a later one of the same name replaces it."""

    def html(self, name: str, path: Path) -> None:
        """Logs a finished HTML page that lies at ``path``."""

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        """Closes. ``summary``: flat final values (best and last); ``status``: finished, stopped or failed."""


class FanOut(Tracker):
    """Passes every call to each sink in turn."""

    def __init__(self, sinks: Sequence[Tracker]) -> None:
        self.sinks = tuple(sinks)

    def log(self, metrics: Scalars, step: int) -> None:
        for sink in self.sinks:
            sink.log(metrics, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        for sink in self.sinks:
            sink.table(name, columns, rows)

    def html(self, name: str, path: Path) -> None:
        for sink in self.sinks:
            sink.html(name, path)

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        for sink in self.sinks:
            sink.finish(summary, status)


def scalars_of(metrics: Scalars) -> Iterable[tuple[str, float | int]]:
    """Yields the metrics that have a value: neither W&B nor TensorBoard knows 'not defined'."""
    return ((key, value) for key, value in metrics.items() if value is not None)
