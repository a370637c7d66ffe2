"""Metrics of attributes inside classes: a long tail that the classes' own counts do not show.

In each class the training images of one attribute are the ``majority``, those of the next one ``second``, and all others
``rare``; of two, the other one is rare (``AttributeRanks``). Source: Tang et al., Invariant Feature Learning for
Generalized Long-Tailed Classification, ECCV 2022, whose attributes are numbered by this rank; Sagawa et al.,
Distributionally Robust Neural Networks, ICLR 2020 (worst group).
Differs: a group's accuracy is the mean over classes of the class's accuracy in it, as for shot groups, where GLT takes the
mean over samples; on tests that are balanced over classes both are the same.
Shapes: P pairs of class and attribute, A attributes, C classes, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ltcore.evaluation.catalog import ATTRIBUTE_RANKS
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.metrics import ClassCounts, balanced_accuracy, macro_precision
from ltcore.evaluation.pairs import AttributeCounts, Ints, Pairs
from ltcore.shots import SHOT_GROUPS

UNRANKED = -1


class AttributeRanks:
    """Places in ``ATTRIBUTE_RANKS`` of the attributes in each class by the training counts, equal counts by attribute id.

    An attribute that no training image of the class has is rare. Where a class and all that are tied to it by attributes in
    common have but two in training, the one that is not the majority is rare, too. A class that has two of more is one that
    lacks the others in training: its other one is the second. A class whose images have none is ``UNRANKED``.
    """

    def __init__(self, trained: AttributeCounts, to_trained_A: Ints | None = None) -> None:
        """Ranks the attributes of training.

        ``to_trained_A`` gives the attribute in training for each of those that will be asked for, -1 for one that training did
        not know; None: they are the same.
        """
        pairs = trained.pairs
        self._pairs, self._to_trained_A = pairs, to_trained_A
        order_P = np.lexsort((-trained.counts_P, pairs.labels_P))  # stable, and pairs are in the order of attributes
        self._number_C = np.bincount(pairs.labels_P, minlength=pairs.num_classes)
        starts_C = np.cumsum(self._number_C) - self._number_C
        places_P = np.empty_like(order_P)
        places_P[order_P] = np.arange(len(order_P)) - starts_C[pairs.labels_P[order_P]]
        second, self._rare = ATTRIBUTE_RANKS.index("second"), ATTRIBUTE_RANKS.index("rare")
        self._ranks_P = np.minimum(places_P, self._rare)
        self._ranks_P[(places_P == second) & self._has_two_C()[pairs.labels_P]] = self._rare

    def _has_two_C(self) -> npt.NDArray[np.bool_]:
        """Tells which classes are of a family with two attributes; classes that share an attribute are of one family."""
        of_class_C, of_attribute_A = self._pairs.families
        two_C: npt.NDArray[np.bool_] = np.bincount(of_attribute_A, minlength=of_class_C.max() + 1)[of_class_C] == 2
        return two_C

    def of(self, pairs: Pairs) -> Ints:
        """Returns the ranks [P] of some pairs."""
        attributes_P = pairs.attributes_P
        if self._to_trained_A is not None:
            attributes_P = np.append(self._to_trained_A, -1)[attributes_P]
        known_P = (attributes_P >= 0) & (attributes_P < self._pairs.num_attributes)
        ranks_P = np.where(known_P & (self._number_C[pairs.labels_P] > 0), self._rare, UNRANKED)
        codes_P = np.where(known_P, attributes_P * pairs.num_classes + pairs.labels_P, -1)
        at_P = np.searchsorted(self._pairs.codes_P, codes_P)
        there_P = np.isin(codes_P, self._pairs.codes_P)
        ranks_P[there_P] = self._ranks_P[at_P[there_P]]
        return ranks_P


@dataclass(frozen=True, eq=False)
class CellCounts:
    """What was counted of each known attribute inside each class; the metrics of attributes follow from it."""

    pairs: Pairs
    ranks_P: Ints
    hits_P: Ints
    samples_P: Ints
    predicted_RC: Ints
    """Per rank and class: samples of the rank, of any class, that were taken for the class."""

    @classmethod
    def of(cls, confusion: Confusion, ranks_P: Ints) -> CellCounts:
        """Reads the counts of the pairs, which have these ranks; no copy of their size is made."""
        known, counts_PC = confusion.pairs.known, confusion.counts_PC
        number = len(known.codes_P)
        predicted_RC = counts_PC.new_zeros(len(ATTRIBUTE_RANKS) + 1, counts_PC.shape[1])
        ranks = torch.tensor(ranks_P, device=counts_PC.device).remainder(len(predicted_RC))  # the last is of UNRANKED
        predicted_RC.index_add_(0, ranks, counts_PC)
        ranks_P, hits_P, samples_P = (
            values_P[:number] for values_P in (ranks_P, confusion.hits_P, confusion.samples_P)
        )
        return cls(known, ranks_P, hits_P, samples_P, predicted_RC[:-1].cpu().numpy())

    def of_rank(self, rank: str) -> ClassCounts:
        """Returns the counts of the samples whose attribute has this rank in their class."""
        place = ATTRIBUTE_RANKS.index(rank)
        there_P = self.ranks_P == place
        hits_C, samples_C = (self.pairs.by_class(values_P * there_P) for values_P in (self.hits_P, self.samples_P))
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
    there_P = cells.samples_P > 0
    result["worst_group"] = min((cells.hits_P[there_P] / cells.samples_P[there_P]).tolist(), default=None)
    return result


def _gap(frequent: ClassCounts, rare: ClassCounts) -> float | None:
    """Returns the mean difference of accuracy over the classes that have samples of both; None without one."""
    theirs = dict(zip(rare.ids, rare.recalls(), strict=True))
    gaps = [ours - theirs[c] for c, ours in zip(frequent.ids, frequent.recalls(), strict=True) if c in theirs]
    return math.fsum(gaps) / len(gaps) if gaps else None
