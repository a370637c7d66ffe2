"""Assignment of local vectors to prototypes: metrics and scores of LPA.

Shapes: P locations, K prototypes, D channels, R sampled vectors.
Cost: 2PKD per image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore.objective.terms.lpa.kmeans import affinity

METRICS = ("cosine", "euclid", "whitened")
SCORES = ("hard", "soft", "presence")

MIN_NORM = 1e-6
"""Length below which a vector has no direction."""
_SOFT_UNIT = 1 << 20
"""Soft scores are counted in integer steps of 1/_SOFT_UNIT, so that their sums do not depend on the order of summation.
"""
_LEAST_VARIANCE = 1e-3
"""Fraction of the mean variance that is added along every principal axis, so that axes without variance are not
amplified to noise.
"""


def lengths(vectors_BPD: Tensor, metric: str) -> Tensor:
    """Returns the norms [B, P] to divide by: 1 unless the metric is 'cosine'.

    With 'cosine', vectors shorter than 1e-6 are left out of samples and counts.
    """
    if metric != "cosine":
        return torch.ones_like(vectors_BPD[..., 0])
    return torch.linalg.vector_norm(vectors_BPD, dim=2)


def affinities(vectors_BPD: Tensor, prototypes_KD: Tensor, metric: str, offsets_K: Tensor | None = None) -> Tensor:
    """Returns [B, P, K] affinities, largest for the nearest prototype.

    Vectors are not normalized: unit prototypes rank by the dot product whatever the length of the vector. With
    'whitened', prototypes and ``offsets_K`` are the result of ``unwhitened``; the other metrics have no offsets.
    """
    if metric == "euclid":
        return affinity(vectors_BPD, prototypes_KD)
    similar_BPK = vectors_BPD @ prototypes_KD.T
    return similar_BPK if offsets_K is None else similar_BPK + offsets_K


def attribute_scores(affinity_BPK: Tensor, size_BP: Tensor, *, score: str, score_temperature: float) -> Tensor:
    """Returns int64 [B, K] scores, r_i up to its sum.

    'hard' counts locations by nearest prototype, 'soft' adds their softmax, 'presence' is 1 for every prototype that is
    nearest to some location. ``size_BP`` are the vectors' :func:`lengths`.
    """
    live_BP = size_BP > MIN_NORM
    if score == "soft":
        logits_BPK = affinity_BPK / (size_BP.clamp_min(MIN_NORM) * score_temperature)[..., None]
        soft_BK = (logits_BPK.softmax(2) * live_BP[..., None]).mean(1)
        return (soft_BK * _SOFT_UNIT).round().long()
    counts_BK = live_BP.new_zeros(len(live_BP), affinity_BPK.shape[2], dtype=torch.int64)
    counts_BK = counts_BK.scatter_add_(1, affinity_BPK.max(2).indices, live_BP.long())
    return counts_BK.clamp_max(1) if score == "presence" else counts_BK


def whitening(points_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (mean [D], matrix [D, D]), float64, that give the points unit variance along every principal axis.

    The whitened vector is (x - mean) @ matrix. Principal axes with hardly any variance keep less.
    """
    mean_D = points_RD.double().mean(0)
    centered_RD = points_RD.double() - mean_D
    variance_D, axes_DD = torch.linalg.eigh(centered_RD.T @ centered_RD / len(points_RD))
    least = (_LEAST_VARIANCE * variance_D.mean()).clamp_min(1e-12)
    return mean_D, axes_DD * variance_D.clamp_min(0).add(least).rsqrt()


def unwhitened(centers_KD: Tensor, mean_D: Tensor, matrix_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (directions [K, D], offsets [K]) by which whitened centers apply to raw vectors.

    x @ directions.T + offsets is the ``kmeans.affinity`` of the whitened vector x.
    """
    directions_KD = centers_KD.double() @ matrix_DD.T
    return directions_KD, -directions_KD @ mean_D - centers_KD.double().square().sum(1) / 2
