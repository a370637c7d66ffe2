"""CLT, ALT and GLT side by side: a column for each protocol, a cell for each metric, over the seeds of its runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltcore.evaluation.bootstrap import LEVEL, RESAMPLES, Interval
from ltcore.evaluation.catalog import ATTRIBUTE_RANKS, METRICS, limits
from ltcore.evaluation.intervals import student
from ltcore.evaluation.protocols import PROTOCOLS, TEST_AS_TRAINED, TRAIN_BALANCED, TRAIN_LONG_TAILED, protocol_of
from ltcore.shots import SHOT_GROUPS
from ltcore.text import counted

COLUMNS = (
    *(
        (TRAIN_BALANCED if PROTOCOLS[key].class_balanced_training else TRAIN_LONG_TAILED, PROTOCOLS[key].test_split)
        for key in ("clt", "alt", "glt")
    ),
    (TRAIN_LONG_TAILED, TEST_AS_TRAINED),
)
"""(training split, test split) from left to right."""
SHOWN = (
    "balanced_accuracy",
    "top1",
    "macro_precision",
    "glt_f1",
    "macro_f1",
    *SHOT_GROUPS,
    *(f"attribute_rank/{rank}" for rank in ATTRIBUTE_RANKS),
    "attribute_gap",
    "worst_group",
    "ece",
)
"""The metrics that are worth a line each; files have all."""


@dataclass(frozen=True)
class SeedResult:
    """What a run came to on one test split."""

    run: str
    """Path or URI of its directory."""
    checkpoint: str
    seed: int
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Interval]
    """Of single metrics, by resampling the test; {} where seeds give them."""


@dataclass(frozen=True)
class Measured:
    """One metric of one protocol. Fractions, not points."""

    values: tuple[float | None, ...]
    """A value per seed."""
    interval: Interval | None
    """95%, cut at the limits of the metric: over seeds where there are several, else by resampling the test; None where
    neither says anything, as where all resamples are equal."""

    @classmethod
    def of(cls, runs: Sequence[SeedResult], metric: str) -> Measured:
        """Collects the values, and the interval that they allow."""
        values = tuple(run.metrics.get(metric) for run in runs)
        known = [value for value in values if value is not None]
        if len(runs) == 1:
            return cls(values, runs[0].intervals.get(metric))
        found = student(known, LEVEL) if len(known) == len(values) else None
        least, most = limits(metric)
        return cls(values, None if found is None else (max(found[0], least), min(found[1], most)))

    @property
    def mean(self) -> float | None:
        """Returns the mean over seeds; None for a metric that is not defined with each of them."""
        known = [value for value in self.values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(self.values) else None

    @property
    def sd(self) -> float | None:
        """Returns the standard deviation over seeds, of a sample; None with one seed."""
        known = [value for value in self.values if value is not None]
        return statistics.stdev(known) if len(known) == len(self.values) > 1 else None


@dataclass(frozen=True)
class ProtocolColumn:
    """One protocol: runs that differ in their seed alone, on one test split."""

    train_split: str
    test_split: str
    runs: tuple[SeedResult, ...]
    """By seed."""
    repeats: int = 1
    """Images of the test that show the same picture."""

    @property
    def name(self) -> str:
        """Returns the name of the protocol, such as 'CLT'."""
        return protocol_of(self.test_split, self.train_split)[0]

    @property
    def metrics(self) -> dict[str, Measured]:
        """Returns every metric that any of the runs has: those of the catalog in its order, then those of attributes."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        ordered = [name for name in METRICS if name in names] + [name for name in names if name not in METRICS]
        return {name: Measured.of(self.runs, name) for name in ordered}

    def to_json(self) -> dict[str, Any]:
        """Returns the column as JSON values."""
        return {
            "protocol": self.name,
            "train_split": self.train_split,
            "test_split": self.test_split,
            "seeds": [run.seed for run in self.runs],
            "runs": [run.run for run in self.runs],
            "checkpoints": [run.checkpoint for run in self.runs],
            "metrics": {
                name: {
                    "mean": cell.mean,
                    "sd": cell.sd,
                    "interval": None if cell.interval is None else list(cell.interval),
                    "values": list(cell.values),
                }
                for name, cell in self.metrics.items()
            },
        }


@dataclass(frozen=True)
class ProtocolTable:
    """The protocols of one training configuration."""

    columns: tuple[ProtocolColumn, ...]

    @property
    def num_seeds(self) -> int:
        """Counts the runs of each column."""
        return len(self.columns[0].runs)

    @property
    def method(self) -> str:
        """Returns in words what the intervals are."""
        if self.num_seeds > 1:
            return f"95% intervals of the mean over {counted(self.num_seeds, 'seed')} (Student t)"
        return (
            f"95% intervals by {RESAMPLES:,} resamples of the test images of each class (bootstrap), none where all of these are "
            f"equal{self._without}; what another seed of training changes is not in them"
        )

    @property
    def _without(self) -> str:
        """Returns which tests have no interval at all."""
        splits = dict.fromkeys(column.test_split for column in self.columns if column.repeats > 1)
        return f" nor on {' and '.join(splits)}, whose images show the same pictures several times" if splits else ""

    def shown(self) -> list[str]:
        """Returns the metrics of ``SHOWN`` that have a value in any column.

        The balanced accuracy is among them where it is not top-1.
        """
        found = {column.name: column.metrics for column in self.columns}

        def says(name: str) -> bool:
            cells = [metrics[name] for metrics in found.values() if name in metrics]
            return any(value is not None for cell in cells for value in cell.values)

        same = all(metrics["balanced_accuracy"] == metrics["top1"] for metrics in found.values())
        return [name for name in SHOWN if says(name) and not (same and name == "balanced_accuracy")]

    def rows(self) -> list[dict[str, Any]]:
        """Returns every metric of every protocol as a flat row, for tables."""
        return [
            {
                "protocol": column.name,
                "train_split": column.train_split,
                "test_split": column.test_split,
                "metric": name,
                "mean": cell.mean,
                "sd": cell.sd,
                "low": None if cell.interval is None else cell.interval[0],
                "high": None if cell.interval is None else cell.interval[1],
                "seeds": len(cell.values),
            }
            for column in self.columns
            for name, cell in column.metrics.items()
        ]
