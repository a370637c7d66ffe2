"""Class descriptions from attribute counts, and the neighbor classes that follow from them.

Two descriptions always have some similarity: of noise, and because parts that many classes show belong together (grass
and sky). How much of it is chance is read off the similarities themselves, most of which are between unrelated classes
(the empirical null of Efron, "Large-scale simultaneous hypothesis testing", 2004): ``chance_level`` is what hardly any
of as many unrelated classes would exceed.
Shapes: C classes, K attributes, k neighbors, n classes or images.
Cost: 2nCK, in chunks of ``ROWS`` rows, so that no [C, C] matrix exists; medians of C numbers per row for the null.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

CENTERINGS = ("centered", "raw", "pmi")
SIMILARITIES = ("cosine", "jaccard")

ROWS = 1024
CHANCE = 0.05
"""Probability that a class without relatives gets a neighbor by ``chance_level``, as the null has it."""
_LARGEST = 1 - 1e-9
"""Similarities are brought below it where their inverse hyperbolic tangent is taken."""
_MAD_OF_NORMAL = 0.6744897501960817
"""Median absolute deviation of a standard normal variable."""
_SAME = 1e-8
"""A description closer to the mean than this equals it: rounding leaves about 1e-16, one location in a million 1e-6."""
_LOG_FLOOR = 1e-12
_TIE = 1e-9
"""Weight of the cosine in the order by Jaccard index. Two different indices of up to 16,000 attributes differ by more.
"""


def mean_class(mass_CK: Tensor) -> Tensor:
    """Returns float64 [K], abar: the mean over the classes seen of their shares."""
    total_C1 = mass_CK.sum(1, keepdim=True).double()
    return (mass_CK / total_C1.clamp_min(1)).sum(0) / (total_C1 > 0).sum().clamp_min(1)


def describe(mass_nK: Tensor, images_n: Tensor, mean_K: Tensor, *, shrink: float, centering: str) -> Tensor:
    """Returns float64 unit vectors [n, K] that describe classes or single images.

    a = mass / row sum; a~ = (images a + m0 abar) / (images + m0), with m0 = ``shrink``; then a~ - abar ('centered'), a~
    ('raw') or log(a~ / abar) ('pmi'). A row is zero where it is empty or equal to the mean.
    """
    total_n1 = mass_nK.sum(1, keepdim=True).double()
    share_nK = mass_nK / total_n1.clamp_min(1)
    images_n1 = images_n[:, None].double().clamp_min(1)
    shrunk_nK = (images_n1 * share_nK + shrink * mean_K) / (images_n1 + shrink)
    if centering == "pmi":
        vectors_nK = shrunk_nK.clamp_min(_LOG_FLOOR).log() - mean_K.clamp_min(_LOG_FLOOR).log()
    else:
        vectors_nK = shrunk_nK - mean_K if centering == "centered" else shrunk_nK
    norm_n1 = vectors_nK.norm(dim=1, keepdim=True)
    return F.normalize(vectors_nK, dim=1) * ((total_n1 > 0) & (norm_n1 > _SAME))


def describe_classes(mass_CK: Tensor, images_C: Tensor, *, shrink: float, centering: str) -> Tensor:
    """Returns float64 [C, K], ``describe`` of every class against the mean of all."""
    return describe(mass_CK, images_C, mean_class(mass_CK), shrink=shrink, centering=centering)


def class_neighbors(
    mass_CK: Tensor,
    images_C: Tensor,
    *,
    neighbors: int,
    threshold: float | None,
    shrink: float,
    centering: str,
    similarity: str = "cosine",
) -> tuple[Tensor, Tensor]:
    """Returns (int64 ids, float64 weights) of every class by ``nearest_classes``, with chance as threshold for None.

    Both are [C, min(neighbors, C - 1)].
    """
    vectors_CK = describe_classes(mass_CK, images_C, shrink=shrink, centering=centering)
    own_C = torch.arange(len(vectors_CK), device=mass_CK.device)
    above = chance_deviations(len(vectors_CK)) if threshold is None else threshold
    return nearest_classes(vectors_CK, own_C, vectors_CK, neighbors=neighbors, threshold=above, similarity=similarity)


def nearest_classes(
    vectors_nK: Tensor, own_n: Tensor, vectors_CK: Tensor, *, neighbors: int, threshold: float | Tensor, similarity: str
) -> tuple[Tensor, Tensor]:
    """Returns ids and weights of the classes most similar to each description.

    Both are [n, min(neighbors, C - 1)], int64 and float64. The classes are those of largest similarity A above the
    threshold t, without the own class ``own_n``; with ``chance_deviations`` as threshold, above the ``chance_level`` of
    each row, or 0 where that is less. A is the cosine, or the Jaccard index of the attributes that a description has
    above 0: those that both have over those that either has; of classes with the same index the one with the larger
    cosine comes first. weight = relu((A - t) / (1 - t)). Where there are fewer classes, and for an
    empty or average description, the rest is padded with the own class at weight 0.
    """
    described_C = vectors_CK.any(1)
    class_C = torch.arange(len(vectors_CK), device=vectors_CK.device)
    ids, weights = [], []
    for vectors_rK, own_r in zip(vectors_nK.split(ROWS), own_n.split(ROWS), strict=True):
        similar_rC = order_rC = vectors_rK @ vectors_CK.T
        if similarity == "jaccard":
            similar_rC = _jaccard(vectors_rK, vectors_CK)
            order_rC = similar_rC + _TIE * order_rC
        known_rC = described_C & vectors_rK.any(1)[:, None] & (own_r[:, None] != class_C)
        ids_rk = order_rC.masked_fill(~known_rC, -torch.inf).topk(min(neighbors, len(class_C) - 1), dim=1).indices
        similar_rk = similar_rC.masked_fill(~known_rC, -torch.inf).gather(1, ids_rk)
        level_r1 = threshold
        if isinstance(threshold, Tensor):
            level_r1 = chance_level(similar_rC, known_rC, threshold).clamp(0, _LARGEST)[:, None]
        weight_rk = ((similar_rk - level_r1) / (1 - level_r1)).clamp(0, 1)
        ids.append(torch.where(weight_rk > 0, ids_rk, own_r[:, None]))
        weights.append(weight_rk)
    return torch.cat(ids), torch.cat(weights)


def chance_level(similar_rC: Tensor, known_rC: Tensor, deviations_n: Tensor) -> Tensor:
    """Returns float64 [r], the similarity that in each row the largest of unrelated classes exceeds with ``CHANCE``.

    Similarities are in [-1, 1]; those of classes not ``known`` do not count. atanh(A) is taken as normal, as Fisher's z of
    a correlation is. Its mean and spread are those of the row by median and median absolute deviation, which relatives
    hardly move as long as they are few. A row without any known class has -1. ``deviations_n`` are
    ``chance_deviations`` of at least C classes.
    """
    z_rC = similar_rC.clamp(-_LARGEST, _LARGEST).atanh()
    count_r = known_rC.sum(1)
    middle_r = _median(z_rC, known_rC)
    spread_r = _median((z_rC - middle_r[:, None]).abs(), known_rC) / _MAD_OF_NORMAL
    level_r = (middle_r + deviations_n.to(spread_r.device)[count_r] * spread_r).tanh()
    return torch.where(count_r > 0, level_r, -1.0)


@functools.cache
def chance_deviations(num_classes: int) -> Tensor:
    """Returns float64 [C + 1], how many spreads the largest of n unrelated values exceeds with ``CHANCE``.

    A spread estimated from n values makes heavier tails than the normal's: those of Student's t with n/2 degrees of
    freedom fit (of 40,000 drawings, 5.3 to 5.6% exceed it for 5 to 999 classes, and 22 to 6% the normal's). n = 0 has 0.
    """
    from scipy.special import stdtrit  # a dependency of scikit-learn, slow to import

    counts = np.arange(1, num_classes + 1)
    alone = (1 - CHANCE) ** (1 / counts)  # of each of so many independent comparisons
    return torch.from_numpy(np.append(0.0, stdtrit(counts / 2, alone)))


def _median(value_rC: Tensor, known_rC: Tensor) -> Tensor:
    """Returns [r], the median of the known values of each row; 0 where there are none."""
    sorted_rC = value_rC.masked_fill(~known_rC, torch.inf).sort(1).values
    count_r1 = known_rC.sum(1, keepdim=True)
    places_r2 = torch.cat([(count_r1 - 1) // 2, count_r1 // 2], 1).clamp(0, sorted_rC.shape[1] - 1)
    middle_r = sorted_rC.gather(1, places_r2).mean(1)
    return torch.where(count_r1[:, 0] > 0, middle_r, 0.0)


def _jaccard(vectors_rK: Tensor, vectors_CK: Tensor) -> Tensor:
    """Returns the Jaccard index [r, C]; 0 where neither has an attribute."""
    has_rK, has_CK = (vectors_rK > 0).double(), (vectors_CK > 0).double()
    shared_rC = has_rK @ has_CK.T
    return shared_rC / (has_rK.sum(1)[:, None] + has_CK.sum(1) - shared_rC).clamp_min(1)
