"""Tests of a sweep's winner against its baseline, whatever they were trained on, and words for one difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ltcore.config.records import SweepRecord
from ltcore.evaluation.catalog import goodness
from ltcore.evaluation.paired import PairedDifference, points
from ltcore.evaluation.protocols import TRAIN_BALANCED, ordered_splits, protocol_of


@dataclass(frozen=True)
class ComparedTest:
    """A test split after training on one split, with the differences of all metrics."""

    split: str
    train_split: str
    cells: Mapping[str, PairedDifference]

    @property
    def name(self) -> str:
        """Returns the name of the protocol, or of the split."""
        return protocol_of(self.split, self.train_split)[0]

    @property
    def meaning(self) -> str:
        """Returns what the protocol measures; '' where the split says it all."""
        return protocol_of(self.split, self.train_split)[1]

    @property
    def metric_key(self) -> str:
        """Returns the start of the names of its metrics in a page."""
        return self.split if self.train_split != TRAIN_BALANCED else f"{self.name}/{self.split}"


def compared_tests(sweep: SweepRecord) -> list[ComparedTest]:
    """Returns the tests of the retrains, and after them that of ALT where winner and baseline were trained for it."""
    compared = sweep.comparison or {}
    found = [ComparedTest(split, sweep.train_split, compared[split]) for split in ordered_splits(compared)]
    balanced = {} if sweep.balanced is None else sweep.balanced.comparison
    of_balanced = [ComparedTest(split, TRAIN_BALANCED, balanced[split]) for split in ordered_splits(balanced)]
    return found + [test for test in of_balanced if test.name != test.split]


def difference_kind(metric: str, delta: PairedDifference) -> str:
    """Returns 'better', 'worse', or 'same' where the interval contains 0."""
    return "same" if not delta.distinguishable else "better" if goodness(metric, delta.difference) > 0 else "worse"


def interval_text(delta: PairedDifference) -> str:
    """Returns both ends of the interval in points; a dash where one seed gives none."""
    return "—" if delta.low is None or delta.high is None else f"{points(delta.low)}..{points(delta.high)}"
