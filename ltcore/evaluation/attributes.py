"""Metrics of attributes inside classes: a long tail that the classes' own counts do not show.

In each class the training images of one attribute are the ``majority``, those of the next one ``second``, and all others
``rare``; where no class has more than two, the other one is rare. Source: Tang et al., Invariant Feature Learning for
Generalized Long-Tailed Classification, ECCV 2022, whose attributes are numbered by this rank; Sagawa et al.,
Distributionally Robust Neural Networks, ICLR 2020 (worst group).
Differs: a group's accuracy is the mean over classes of the class's accuracy in it, as for shot groups, where GLT takes the
mean over samples; on tests that are balanced over classes both are the same.
Shapes: A attributes, + 1 slot for 'unknown' in ``counts_ACC``; C classes (rows: label, columns: prediction); R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ltcore.evaluation.catalog import ATTRIBUTE_RANKS
from ltcore.evaluation.metrics import ClassCounts, balanced_accuracy, macro_precision
from ltcore.shots import SHOT_GROUPS

Ints = npt.NDArray[np.int64]
UNRANKED = -1


def attribute_counts(labels_N: Ints, attributes_N: Ints, num_classes: int, num_attributes: int) -> Ints:
    """Counts the samples of each class and attribute, as [C, A]; those of unknown attribute (-1) are left out."""
    known_N = attributes_N >= 0
    cells_N = labels_N[known_N] * num_attributes + attributes_N[known_N]
    counts: Ints = np.bincount(cells_N, minlength=num_classes * num_attributes).astype(np.int64)
    return counts.reshape(num_classes, num_attributes)


def rank_attributes(counts_CA: Ints) -> Ints:
    """Returns [A, C] places in ``ATTRIBUTE_RANKS`` by the training counts, equal counts by attribute id.

    An attribute that no training image of the class has is rare, and where no class has more than two, shared ones or its
    own, the one that is not the majority. A class whose images have none is ``UNRANKED``.
    """
    second, rare = ATTRIBUTE_RANKS.index("second"), ATTRIBUTE_RANKS.index("rare")
    places_A = np.minimum(np.arange(counts_CA.shape[1]), rare)
    if np.count_nonzero(counts_CA, axis=1).max() <= 2:
        places_A[places_A == second] = rare
    ranks_CA = np.empty_like(counts_CA)
    np.put_along_axis(ranks_CA, np.argsort(-counts_CA, axis=1, kind="stable"), places_A[None], axis=1)
    ranks_CA[counts_CA == 0] = rare
    ranks_CA[counts_CA.sum(1) == 0] = UNRANKED
    return ranks_CA.T.copy()


@dataclass(frozen=True)
class CellCounts:
    """What was counted of each attribute inside each class; the metrics of attributes follow from it."""

    ranks_AC: Ints
    hits_AC: Ints
    samples_AC: Ints
    predicted_RC: Ints
    """Per rank and class: samples of the rank, of any class, that were taken for the class."""

    @classmethod
    def of(cls, counts_ACC: Tensor, ranks_AC: Ints) -> CellCounts:
        """Reads the counts [A + 1, C, C], whose last slot is of unknown attributes; no copy of their size is made."""
        known_ACC = counts_ACC.cpu().numpy()[:-1]
        predicted_RC = np.zeros((len(ATTRIBUTE_RANKS), known_ACC.shape[2]), np.int64)
        for counts_CC, ranks_C in zip(known_ACC, ranks_AC, strict=True):
            for rank, predicted_C in enumerate(predicted_RC):
                predicted_C += counts_CC[ranks_C == rank].sum(0)
        return cls(ranks_AC, known_ACC.diagonal(axis1=1, axis2=2).copy(), known_ACC.sum(2), predicted_RC)

    def of_rank(self, rank: str) -> ClassCounts:
        """Returns the counts of the samples whose attribute has this rank in their class."""
        place = ATTRIBUTE_RANKS.index(rank)
        there_AC = self.ranks_AC == place
        hits_C, samples_C = ((values_AC * there_AC).sum(0) for values_AC in (self.hits_AC, self.samples_AC))
        return ClassCounts.of_all(hits_C, samples_C, self.predicted_RC[place])


def attribute_metrics(cells: CellCounts, shot_groups: Sequence[str]) -> dict[str, float | None]:
    """Computes the metrics of ``catalog.METRICS`` that need attributes; None where one is not defined.

    ``shot_groups`` names the group of each class. The precision counts predictions inside the rank's samples alone, GLT's
    rule for attributes ('premask').
    """
    ranked = {rank: cells.of_rank(rank) for rank in ATTRIBUTE_RANKS}
    result: dict[str, float | None] = {}
    for rank, counts in ranked.items():
        result[f"attribute_rank/{rank}"] = balanced_accuracy(counts)
        result[f"attribute_rank/{rank}/macro_precision"] = macro_precision(counts)
        for group in SHOT_GROUPS:
            ids = [c for c, name in enumerate(shot_groups) if name == group]
            result[f"attribute_rank/{rank}/{group}"] = balanced_accuracy(counts.only(ids))
    result["attribute_gap"] = _gap(ranked["majority"], ranked["rare"])
    there_AC = cells.samples_AC > 0
    result["worst_group"] = min((cells.hits_AC[there_AC] / cells.samples_AC[there_AC]).tolist(), default=None)
    return result


def _gap(frequent: ClassCounts, rare: ClassCounts) -> float | None:
    """Returns the mean difference of accuracy over the classes that have samples of both; None without one."""
    theirs = dict(zip(rare.ids, rare.recalls(), strict=True))
    gaps = [ours - theirs[c] for c, ours in zip(frequent.ids, frequent.recalls(), strict=True) if c in theirs]
    return math.fsum(gaps) / len(gaps) if gaps else None
