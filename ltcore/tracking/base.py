"""The interface of a run's sinks, and the trackers that hold none or several of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Scalars = Mapping[str, float | int | None]


class Tracker:
    """A sink that keeps nothing. Ranks other than 0 have one, and sinks override what they keep."""

    def log(self, metrics: Scalars, step: int) -> None:
        """Logs scalars at a step; None means 'not defined'.

        ``step`` counts optimizer steps and never decreases.
        """

    def take_over(self, metrics: Scalars, step: int) -> None:
        """Logs a row of the run that this one starts from, which ``metrics.jsonl`` has already."""
        self.log(metrics, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a small table (per-class accuracy, a ranking); a later one of the same name replaces it."""

    def bars(self, name: str, label: str, value: str, rows: Sequence[tuple[str, float]]) -> None:
        """Logs a chart with a bar per row; ``label`` and ``value`` say what its two columns are."""

    def confusion(self, name: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Logs a confusion matrix as a picture; rows of ``counts`` are labels, columns predictions."""

    def html(self, name: str, path: Path) -> None:
        """Logs the finished HTML page at ``path``."""

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        """Closes the sink.

        ``summary`` has final values (best and last) by flat key; ``status`` is finished, stopped or failed.
        """


class FanOut(Tracker):
    """A tracker that passes every call to each of its sinks in turn."""

    def __init__(self, sinks: Sequence[Tracker]) -> None:
        self.sinks = tuple(sinks)

    def log(self, metrics: Scalars, step: int) -> None:
        for sink in self.sinks:
            sink.log(metrics, step)

    def take_over(self, metrics: Scalars, step: int) -> None:
        for sink in self.sinks:
            sink.take_over(metrics, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        for sink in self.sinks:
            sink.table(name, columns, rows)

    def bars(self, name: str, label: str, value: str, rows: Sequence[tuple[str, float]]) -> None:
        for sink in self.sinks:
            sink.bars(name, label, value, rows)

    def confusion(self, name: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        for sink in self.sinks:
            sink.confusion(name, classes, counts)

    def html(self, name: str, path: Path) -> None:
        for sink in self.sinks:
            sink.html(name, path)

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        for sink in self.sinks:
            sink.finish(summary, status)


def scalars_of(metrics: Scalars) -> Iterable[tuple[str, float | int]]:
    """Returns the metrics that have a value, since neither W&B nor TensorBoard supports 'not defined'."""
    return ((key, value) for key, value in metrics.items() if value is not None)
