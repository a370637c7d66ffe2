"""Intervals of a test's metrics by resampling its samples, from the counts alone.

Each resample draws as many samples of every class as the test has, with replacement. In a class with as many samples of
each attribute, two at least, as the test balances them, it draws as many of each again; elsewhere attributes are drawn with
the samples, since one of few samples, drawn from itself alone, would seem certain. 'Each attribute' is all that occur in the
class and in those that are tied to it by attributes in common. Drawing samples is drawing attributes and predictions from a
multinomial distribution, so the counts are enough.

The interval is the basic one, from 2 v - q(97.5%) to
2 v - q(2.5%) of a value v and the quantiles q over resamples (Davison and Hinkley, Bootstrap Methods and their Application,
1997, section 5.2), cut at the limits of the metric: precision and ECE of few samples are biased, resamples are biased once
more, and quantiles themselves would lie to one side of the value. It says how far the metrics of *this* network may be off
because the test is finite; another seed of training differs by more.

ECE is resampled from its bins, whose mean confidences stay as they are: a bin is 1/15 wide, and within it the confidence
varies far less than whether the prediction is right. Left out is what jumps from one sample to the next: the lowest of many
values, and the means of recalls that one recall of 0 makes 0. A metric that is the same in all resamples, such as a recall
of 100%, has no interval: resampling says nothing of how often what did not happen would happen.
Shapes: S resamples, P pairs of class and attribute, C classes, M cells (pair, prediction) that have samples, R ranks of
attributes, K bins of confidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltcore.evaluation.attributes import UNRANKED, CellCounts, attribute_metrics
from ltcore.evaluation.catalog import ATTRIBUTE_RANKS, METRICS, limits
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.metrics import ClassCounts, calibration_metrics, class_metrics
from ltcore.evaluation.pairs import Ints, Pairs

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 50
"""Resamples that are held at a time, of 8 (2 P + (R + 2 K + 1) C) bytes each."""
_JUMPING = ("worst_class", "worst_group", "geometric_mean", "harmonic_mean")

Interval = tuple[float, float]


def bootstrap_intervals(
    confusion: Confusion, ranks_P: Ints | None, shot_groups: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Returns the 95% interval of each metric that has a value, except those that jump or are equal in all resamples, and top-5.

    ``ranks_P`` are the ranks of the attributes in the pairs that were counted; None where the data have none. The same
    arguments give the same numbers.
    """
    rng = np.random.default_rng(seed)
    rows, bins = _Rows(confusion, ranks_P), _Bins(confusion.bins_CK3.cpu().numpy())
    drawn: dict[str, list[float]] = {}
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        for (classes, cells), sums_CK3 in zip(rows.resampled(rng, count), bins.resampled(rng, count), strict=True):
            for name, value in _values(classes, cells, sums_CK3, shot_groups).items():
                if value is not None:
                    drawn.setdefault(name, []).append(value)
    classes, cells = rows.given()
    values = _values(classes, cells, bins.given(), shot_groups)
    found = {name: _basic(name, values[name], drawn[name]) for name in METRICS if name in drawn}
    return {name: (low, high) for name, (low, high) in found.items() if low < high}


def _values(
    classes: ClassCounts, cells: CellCounts | None, sums_CK3: Ints, shot_groups: Sequence[str]
) -> dict[str, float | None]:
    found = class_metrics(classes, shot_groups) | calibration_metrics(sums_CK3, shot_groups)
    if cells is not None:
        found |= attribute_metrics(cells, shot_groups)
    return {name: value for name, value in found.items() if name not in _JUMPING}


def _basic(name: str, value: float | None, drawn: Sequence[float]) -> Interval:
    assert value is not None, "a resample has as many samples of each cell as the test"
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    least, most = limits(name)
    return max(2 * value - high, least), min(2 * value - low, most)


@dataclass(frozen=True)
class _Stratum:
    """Samples of one class that are resampled together: cells (pair, prediction) that have some, and their shares."""

    label: int
    total: int
    rows_M: Ints
    predictions_M: Ints
    shares_M: npt.NDArray[np.float64]

    @classmethod
    def of(cls, counts_PC: Ints, pairs: Pairs, label: int, rows_R: Ints, attributes: Sequence[int]) -> list[_Stratum]:
        """Splits a class, of which these are the rows, into its strata; ``attributes`` are all that it could have."""
        samples_R = counts_PC[rows_R].sum(1)
        rows_R, samples_R = rows_R[samples_R > 0], samples_R[samples_R > 0]
        is_whole = pairs.attributes_P[rows_R].tolist() == attributes
        balanced = is_whole and len(set(samples_R.tolist())) == 1 and samples_R[0] > 1
        groups = np.split(rows_R, len(rows_R)) if balanced else [rows_R]
        return [cls._of(counts_PC, label, group) for group in groups if len(group)]

    @classmethod
    def _of(cls, counts_PC: Ints, label: int, group: Ints) -> _Stratum:
        at_M, predictions_M = np.nonzero(counts_PC[group])
        counts_M = counts_PC[group][at_M, predictions_M]
        total = int(counts_M.sum())
        return cls(label, total, group[at_M], predictions_M, counts_M / total)


class _Rows:
    """The predictions of a test, class by class."""

    def __init__(self, confusion: Confusion, ranks_P: Ints | None) -> None:
        self._confusion, self._pairs, self._ranks_P = confusion, confusion.pairs, ranks_P
        self._known, labels_P = confusion.pairs.known, confusion.pairs.labels_P
        starts = np.cumsum(np.bincount(labels_P, minlength=confusion.pairs.num_classes))[:-1]
        rows_by_class = np.split(np.argsort(labels_P, kind="stable"), starts)
        counts_PC, pairs = confusion.counts_PC.cpu().numpy(), confusion.pairs
        there = Pairs(pairs.codes_P[counts_PC.any(1)], pairs.num_classes, pairs.num_attributes)
        of_class_C, of_attribute_A = there.families
        attributes = [np.flatnonzero(of_attribute_A == family).tolist() for family in of_class_C.tolist()]
        self._strata = [
            each
            for c, rows_R in enumerate(rows_by_class)
            for each in _Stratum.of(counts_PC, pairs, c, rows_R, attributes[c])
        ]

    def given(self) -> tuple[ClassCounts, CellCounts | None]:
        """Returns what was counted of the test itself."""
        cells = None if self._ranks_P is None else CellCounts.of(self._confusion, self._ranks_P)
        return ClassCounts.of(self._confusion), cells

    def resampled(self, rng: np.random.Generator, count: int) -> Iterator[tuple[ClassCounts, CellCounts | None]]:
        """Yields ``count`` resamples."""
        num_pairs, num_classes = len(self._pairs.codes_P), self._pairs.num_classes
        hits_SP = np.zeros((count, num_pairs), np.int64)
        samples_SP = np.zeros_like(hits_SP)
        predicted_SC = np.zeros((count, num_classes), np.int64)
        predicted_SRC = np.zeros((count, len(ATTRIBUTE_RANKS), num_classes), np.int64)
        for stratum in self._strata:
            c, drawn_SM = stratum.label, rng.multinomial(stratum.total, stratum.shares_M, size=count)
            for row in np.unique(stratum.rows_M).tolist():
                at = np.flatnonzero(stratum.rows_M == row)
                drawn_SK, predictions_K = drawn_SM[:, at], stratum.predictions_M[at]
                samples_SP[:, row] = drawn_SK.sum(1)
                hits_SP[:, row] = drawn_SK[:, predictions_K == c].sum(1)
                predicted_SC[:, predictions_K] += drawn_SK
                if self._ranks_P is not None and (rank := self._ranks_P[row]) != UNRANKED:
                    predicted_SRC[:, rank, predictions_K] += drawn_SK
        by_class, known = self._pairs.by_class, slice(len(self._known.codes_P))
        columns = zip(hits_SP, samples_SP, predicted_SC, predicted_SRC, strict=True)
        for hits_P, samples_P, predicted_C, predicted_RC in columns:
            cells = None
            if self._ranks_P is not None:
                cells = CellCounts(self._known, self._ranks_P[known], hits_P[known], samples_P[known], predicted_RC)
            yield ClassCounts.of_all(by_class(hits_P), by_class(samples_P), predicted_C), cells


class _Bins:
    """The reliability bins of each class, each as right and wrong predictions with the mean confidence of both."""

    def __init__(self, sums_CK3: Ints) -> None:
        self._sums_CK3 = sums_CK3
        counts_CK, correct_CK, units_CK = (sums_CK3[..., i] for i in range(3))
        self._units_CK = units_CK / np.maximum(counts_CK, 1)
        self._cells_CM = np.concatenate([correct_CK, counts_CK - correct_CK], axis=1)

    def given(self) -> Ints:
        """Returns the bins of the test itself."""
        return self._sums_CK3

    def resampled(self, rng: np.random.Generator, count: int) -> Iterator[Ints]:
        """Yields ``count`` resamples as [C, K, 3]."""
        num_bins = self._units_CK.shape[1]
        drawn_SCM = np.zeros((count, *self._cells_CM.shape), np.int64)
        for c, cells_M in enumerate(self._cells_CM):
            if total := int(cells_M.sum()):
                drawn_SCM[:, c] = rng.multinomial(total, cells_M / total, size=count)
        for drawn_CM in drawn_SCM:
            correct_CK, wrong_CK = drawn_CM[:, :num_bins], drawn_CM[:, num_bins:]
            counts_CK = correct_CK + wrong_CK
            units_CK = np.rint(counts_CK * self._units_CK).astype(np.int64)
            yield np.stack([counts_CK, correct_CK, units_CK], axis=2)
