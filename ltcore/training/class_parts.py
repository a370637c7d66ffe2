"""Which classes share parts, and which parts these are, by the descriptions and the threshold of LPA.

Shapes: C classes, K prototypes. Cost: that of ``nearest_classes``; no [C, C] matrix exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltcore.evaluation.retrieval import ClassPair, SharedPart
from ltcore.objective.terms.lpa.attributes import chance_deviations, describe_classes, nearest_classes
from ltcore.objective.terms.lpa.prototypes import PrototypesSpec

PAIRS = 15
"""Most similar pairs of classes that are kept."""
BORROWING = 12
"""Few-shot classes that are kept, those with the most similar many-shot class."""
LENDERS = 2
"""Many-shot classes of each of them."""
PARTS = 4
"""Prototypes named for each pair."""
_PER_CLASS = 3


@dataclass(frozen=True)
class ClassParts:
    """Pairs of similar classes."""

    pairs: tuple[ClassPair, ...]
    """The most similar first, each pair once."""
    borrowed: tuple[ClassPair, ...]
    """Few-shot classes (``first``) with many-shot classes."""

    def weights(self) -> dict[int, float]:
        """Returns the prototypes that are named, with their summed shares of the similarities."""
        found: dict[int, float] = {}
        for part in (part for pair in (*self.pairs, *self.borrowed) for part in pair.parts):
            found[part.prototype] = found.get(part.prototype, 0.0) + part.share
        return found


def class_parts(mass_CK: Tensor, images_C: Tensor, spec: PrototypesSpec, shot_groups: Sequence[str]) -> ClassParts:
    """Returns the classes that share parts, by the counts of prototypes in their images."""
    vectors_CK = describe_classes(mass_CK, images_C, shrink=spec.shrink, centering=spec.centering)
    all_C = torch.arange(len(vectors_CK))
    pairs: dict[tuple[int, int], ClassPair] = {}
    for pair in _pairs(vectors_CK, all_C, all_C, _PER_CLASS):
        ends = min(pair.first, pair.second), max(pair.first, pair.second)
        beyond = pair.beyond_chance or (ends in pairs and pairs[ends].beyond_chance)
        pairs[ends] = replace(pair, first=ends[0], second=ends[1], beyond_chance=beyond)
    borrowed = _of_few(vectors_CK, shot_groups)
    return ClassParts(tuple(sorted(pairs.values(), key=_strength)[:PAIRS]), borrowed)


def _of_few(vectors_CK: Tensor, shot_groups: Sequence[str]) -> tuple[ClassPair, ...]:
    """Returns few-shot classes with many-shot classes, those of one class beside each other."""
    few_C, many_C = (
        torch.tensor([c for c, of in enumerate(shot_groups) if of == group], dtype=torch.int64)
        for group in ("few", "many")
    )
    lenders: dict[int, list[ClassPair]] = {}
    for pair in _pairs(vectors_CK, few_C, many_C, LENDERS):
        lenders.setdefault(pair.first, []).append(pair)
    chosen = sorted(lenders.values(), key=lambda found: _strength(found[0]))[:BORROWING]
    return tuple(pair for found in chosen for pair in found)


def _strength(pair: ClassPair) -> tuple[float, int, int]:
    return -pair.similarity, pair.first, pair.second


def _pairs(vectors_CK: Tensor, own_n: Tensor, others_m: Tensor, neighbors: int) -> Iterator[ClassPair]:
    """Yields the classes of ``others_m`` most similar to each of ``own_n``, above 0, the most similar first."""
    others_CK = torch.zeros_like(vectors_CK).index_copy_(0, others_m, vectors_CK[others_m])
    ids_nk, similar_nk = _nearest(vectors_CK[own_n], own_n, others_CK, neighbors, 0.0)
    _, beyond_nk = _nearest(vectors_CK[own_n], own_n, others_CK, neighbors, chance_deviations(len(vectors_CK)))
    for first, ids, similar, beyond in zip(
        own_n.tolist(), ids_nk.tolist(), similar_nk.tolist(), beyond_nk.tolist(), strict=True
    ):
        for second, value, above in zip(ids, similar, beyond, strict=True):
            if value > 0:
                yield ClassPair(first, second, value, above > 0, _parts(vectors_CK[first], vectors_CK[second]))


def _nearest(
    vectors_nK: Tensor, own_n: Tensor, others_CK: Tensor, neighbors: int, threshold: float | Tensor
) -> tuple[Tensor, Tensor]:
    return nearest_classes(vectors_nK, own_n, others_CK, neighbors=neighbors, threshold=threshold, similarity="cosine")


def _parts(first_K: Tensor, second_K: Tensor) -> tuple[SharedPart, ...]:
    """Returns the prototypes above the mean class in both, by their part of the cosine."""
    product_K = first_K * second_K
    total = product_K.clamp_min(0).sum()
    both_K = torch.where((first_K > 0) & (second_K > 0), product_K, 0.0) / total
    order = both_K.argsort(descending=True, stable=True)[:PARTS].tolist()
    return tuple(SharedPart(k, float(both_K[k])) for k in order if both_K[k] > 0)
