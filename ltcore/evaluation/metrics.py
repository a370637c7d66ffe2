"""Metrics of long-tailed recognition as functions of the confusion counts. All are fractions in [0, 1], in float64.

Source: OLTR (many / medium / few), GLT ``utils/general_utils.py`` (macro precision and its F1), Brodersen et al., ICPR
2010 (balanced accuracy), Kubat & Matwin, ICML 1997 (geometric mean of recalls), Guo et al., ICML 2017 (ECE, see
``calibration``); macro F1 is the mean of the classes' F1, as in scikit-learn.
Differs: classes without test samples are left out of every mean, and a group of such classes is None, where OLTR and GLT
return 0 and scikit-learn counts an F1 of 0 for them once they are predicted; GLT's F1 is 0 where theirs is NaN.
Shapes: P pairs of class and attribute, C classes, R some of them, K bins of confidence.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ltcore.evaluation.calibration import ReliabilityBin, expected_calibration_error, reliability
from ltcore.evaluation.catalog import MAX_NAMED_ATTRIBUTES, METRICS
from ltcore.evaluation.confusion import Confusion
from ltcore.shots import SHOT_GROUPS

Column = Tensor | npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassCounts:
    """What was counted of each class that has samples; all metrics but ECE and top-5 follow from it."""

    ids: tuple[int, ...]
    hits: tuple[int, ...]
    samples: tuple[int, ...]
    predicted: tuple[int, ...]
    """Samples of any class that were taken for it."""

    @classmethod
    def of(cls, confusion: Confusion) -> ClassCounts:
        """Reads the counts; no copy of their size is made."""
        by_class = confusion.pairs.by_class
        return cls.of_all(by_class(confusion.hits_P), by_class(confusion.samples_P), confusion.counts_PC.sum(0))

    @classmethod
    def of_all(cls, hits_C: Column, samples_C: Column, predicted_C: Column) -> ClassCounts:
        """Keeps those of all classes that have samples."""
        return cls.of_some(np.arange(len(hits_C)), hits_C, samples_C, predicted_C)

    @classmethod
    def of_some(cls, labels_R: Column, hits_R: Column, samples_R: Column, predicted_R: Column) -> ClassCounts:
        """Keeps those of some classes, rising, that have samples."""
        columns = (labels_R, hits_R, samples_R, predicted_R)
        found = cls(*(tuple(column.tolist()) for column in columns))
        return found._chosen(found.samples)

    def only(self, ids: Iterable[int]) -> ClassCounts:
        """Returns those of the classes ``ids`` that have samples."""
        return self._chosen(list(map(set(ids).__contains__, self.ids)))

    def _chosen(self, wanted: Sequence[int]) -> ClassCounts:
        columns = (self.ids, self.hits, self.samples, self.predicted)
        return ClassCounts(*(tuple(itertools.compress(column, wanted)) for column in columns))

    def recalls(self) -> list[float]:
        """Returns hits / samples of each class."""
        return [hit / count for hit, count in zip(self.hits, self.samples, strict=True)]


def metrics(confusion: Confusion, shot_groups: Sequence[str]) -> dict[str, float | None]:
    """Computes the metrics of ``catalog.METRICS`` that need no attributes; None where one is not defined.

    ``shot_groups`` names the group of each class. A group's value is the mean recall, or precision, over those of its
    classes that have test samples, and ECE over the samples of its classes. For the precision, predictions of a class
    count that were made for any test sample (GLT's rule for groups of classes).
    """
    result = class_metrics(ClassCounts.of(confusion), shot_groups)
    result["top5"] = top5(confusion)
    result |= calibration_metrics(confusion.bins_CK3.cpu().numpy(), shot_groups)
    return {name: result[name] for name in METRICS if name in result}


def calibration_metrics(sums_CK3: npt.NDArray[np.int64], shot_groups: Sequence[str]) -> dict[str, float | None]:
    """Computes the ECE of all samples, and of those of each group of classes.

    ``sums_CK3`` holds samples, correct ones and confidences of each class and bin, as ``Confusion.bins_CK3``.
    """
    result = {"ece": expected_calibration_error(sums_CK3.sum(0).tolist())}
    for name in SHOT_GROUPS:
        ids = [c for c, group in zip(range(len(sums_CK3)), shot_groups, strict=True) if group == name]
        result[f"{name}/ece"] = expected_calibration_error(sums_CK3[ids].sum(0).tolist())
    return result


def class_metrics(counts: ClassCounts, shot_groups: Sequence[str]) -> dict[str, float | None]:
    """Computes those of ``metrics`` that follow from the counts of each class."""
    top1, precision = accuracy(counts), macro_precision(counts)
    result = {
        "balanced_accuracy": balanced_accuracy(counts),
        "top1": top1,
        "macro_f1": macro_f1(counts),
        "macro_precision": precision,
        "glt_f1": glt_f1(top1, precision),
        "geometric_mean": geometric_mean(counts),
        "harmonic_mean": harmonic_mean(counts),
        "worst_class": min(counts.recalls(), default=None),
    }
    for name in SHOT_GROUPS:
        group = counts.only(c for c, of_class in enumerate(shot_groups) if of_class == name)
        result[name] = balanced_accuracy(group)
        result[f"{name}/macro_precision"] = macro_precision(group)
    return result


def accuracy(counts: ClassCounts) -> float | None:
    """Returns the share of correct predictions (top-1); None for an empty evaluation."""
    total = sum(counts.samples)
    return sum(counts.hits) / total if total else None


def balanced_accuracy(counts: ClassCounts) -> float | None:
    """Returns the mean recall of the classes; None without one.

    Where all have as many samples it equals top-1 to the last bit, so that neither ranks what the other holds equal.
    """
    hits: dict[int, int] = {}
    for hit, count in zip(counts.hits, counts.samples, strict=True):
        hits[count] = hits.get(count, 0) + hit
    num_classes = len(counts.samples)
    return math.fsum(hit / (count * num_classes) for count, hit in hits.items()) if hits else None


def macro_precision(counts: ClassCounts) -> float | None:
    """Returns the mean of hits / predictions over the classes *present in the labels*.

    A class that is never predicted contributes 0.
    """
    return _mean(hit / max(taken, 1) for hit, taken in zip(counts.hits, counts.predicted, strict=True))


def macro_f1(counts: ClassCounts) -> float | None:
    """Returns the mean F1 over the classes present in the labels: harmonic mean of a class's precision and recall."""
    columns = zip(counts.hits, counts.samples, counts.predicted, strict=True)
    return _mean(2 * hit / (count + taken) for hit, count, taken in columns)


def glt_f1(top1: float | None, precision: float | None) -> float | None:
    """Returns the harmonic mean of accuracy and macro precision, 0 where both are 0. This is *not* the macro F1."""
    if top1 is None or precision is None:
        return None
    return 2 * top1 * precision / (top1 + precision) if top1 + precision > 0 else 0.0


def geometric_mean(counts: ClassCounts) -> float | None:
    """Returns the geometric mean of the recalls; a single recall of 0 makes it 0."""
    recalls = counts.recalls()
    if not recalls:
        return None
    return 0.0 if min(recalls) == 0 else statistics.geometric_mean(recalls)


def harmonic_mean(counts: ClassCounts) -> float | None:
    """Returns the harmonic mean of the recalls; a single recall of 0 makes it 0."""
    recalls = counts.recalls()
    return statistics.harmonic_mean(recalls) if recalls else None


def top5(confusion: Confusion) -> float | None:
    """Returns the share of samples with their class among the five largest logits; None with five classes or fewer."""
    if len(confusion.top_C) <= METRICS["top5"].above_classes or not (total := confusion.total):
        return None
    return int(confusion.top_C.sum()) / total


def reliability_bins(confusion: Confusion) -> list[ReliabilityBin]:
    """Returns the reliability bins of all samples."""
    return reliability(confusion.bins_CK3.sum(0).tolist())


def support(confusion: Confusion) -> list[int]:
    """Returns the number of test samples of each class."""
    samples: list[int] = confusion.pairs.by_class(confusion.samples_P).tolist()
    return samples


def per_class(confusion: Confusion) -> list[float | None]:
    """Returns the recall of each class, its own accuracy; None for a class without test samples."""
    found = ClassCounts.of(confusion)
    recalls = dict(zip(found.ids, found.recalls(), strict=True))
    return [recalls.get(c) for c in range(confusion.pairs.num_classes)]


def per_attribute(confusion: Confusion, names: Sequence[str]) -> dict[str, float | None]:
    """Returns ``attribute/<name>``, the accuracy of the samples with that attribute, and its ``/macro_precision``.

    Precision counts predictions inside the attribute's samples, GLT's rule for attributes ('premask'). Samples of
    unknown attribute belong to no group; a group without samples is None. Of more than ``MAX_NAMED_ATTRIBUTES`` there are
    none: each would be two columns of a log, and of attributes that one class has, they are recalls of parts of the class.
    """
    if len(names) > MAX_NAMED_ATTRIBUTES:
        return {}
    pairs, hits_P, samples_P = confusion.pairs, confusion.hits_P, confusion.samples_P
    bounds = np.searchsorted(pairs.attributes_P, np.arange(len(names) + 1)).tolist()
    result: dict[str, float | None] = {}
    for name, start, stop in zip(names, bounds[:-1], bounds[1:], strict=True):
        labels_R, predicted_C = pairs.labels_P[start:stop], confusion.counts_PC[start:stop].sum(0).cpu().numpy()
        counts = ClassCounts.of_some(labels_R, hits_P[start:stop], samples_P[start:stop], predicted_C[labels_R])
        result[f"attribute/{name}"] = accuracy(counts)
        result[f"attribute/{name}/macro_precision"] = macro_precision(counts)
    return result


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None
